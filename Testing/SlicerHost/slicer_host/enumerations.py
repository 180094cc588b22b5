"""Qt's enumerations as PythonQt shows them: ints, in the scope of their class; and the host's error."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any


class PythonQtError(TypeError):
    """Something that PythonQt refuses, or does wrongly without saying so."""


class EnumValue(int):
    """A value of a Qt enumeration, which PythonQt makes an int."""

    member: enum.Enum

    def __new__(cls, member: enum.Enum) -> EnumValue:
        number = member.value
        value = super().__new__(cls, number if isinstance(number, int) else 0)
        value.member = member
        return value

    def _combined(self, other: Any, operation: Callable[[Any, Any], Any]) -> int:
        if isinstance(other, EnumValue) and isinstance(self.member, enum.Flag):
            return EnumValue(operation(self.member, other.member))
        return operation(int(self), int(other))

    def __or__(self, other: Any) -> int:
        return self._combined(other, lambda a, b: a | b)

    def __and__(self, other: Any) -> int:
        return self._combined(other, lambda a, b: a & b)

    def __invert__(self) -> int:
        return EnumValue(~self.member) if isinstance(self.member, enum.Flag) else ~int(self)

    def __repr__(self) -> str:
        return f"{type(self.member).__name__}({int(self)})"


class EnumType:
    """The type of an enumeration: in PythonQt it makes values of ints and has no members of its own."""

    def __init__(self, kind: type[enum.Enum]) -> None:
        self._kind = kind

    def __call__(self, value: int) -> EnumValue:
        return EnumValue(self._kind(int(value)))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"PythonQt has no {self._kind.__name__}.{name}; write the value in the class's own scope (qt.Qt.{name})"
        )
