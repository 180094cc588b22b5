"""What PythonQt makes of Qt, made of PySide6: objects behind wrappers that are as strict as PythonQt's.

A Slicer module never sees a PySide6 object. It sees a :class:`Wrapper` with PythonQt's habits: properties are
attributes (and hide the getters of the same name), keyword arguments raise, attributes of one's own raise, a push
button is no instance of ``qt.QWidget``, a float given to an int is truncated, and signals are connected by their C++
signature. Where PythonQt prints a warning and goes on (an unknown signal), the wrapper raises, because a test has
nobody who reads warnings.

Facts about PythonQt: its sources (PythonQtInstanceWrapper, PythonQtClassInfo, PythonQtConversion,
PythonQtSignalReceiver).
"""

from __future__ import annotations

import enum
import functools
import inspect
from collections.abc import Callable
from pathlib import PurePath
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import shiboken6
from PySide6 import QtCore

from . import console
from .enumerations import EnumType, EnumValue, PythonQtError
from .signals import bound_signal, connections_of, longest_signature, meta_of, parameter_count, relay_to

_CLASSES: dict[type, type] = {}


def wrap(value: Any) -> Any:
    """Return what Python code gets from PythonQt for a value of PySide6."""
    if isinstance(value, Wrapper | EnumValue):
        return value
    if isinstance(value, enum.Enum):
        return EnumValue(value)
    if isinstance(value, shiboken6.Object):
        known = getattr(value, "_pythonqt_wrapper", None)
        return known if known is not None else wrapper_class(type(value))._around(value)
    if isinstance(value, dict):
        return {key: wrap(item) for key, item in value.items()}
    return tuple(wrap(item) for item in value) if isinstance(value, list | tuple) else value


def unwrap(value: Any) -> Any:
    """Return the value for PySide6 of what Python code gives.

    Raises
    ------
    PythonQtError
        For what PythonQt does not convert: paths and NumPy's integers and booleans.
    """
    if isinstance(value, Wrapper):
        return value._wrapped_or_raise()
    if isinstance(value, EnumValue):
        return value.member
    if isinstance(value, PurePath):
        raise PythonQtError(f"PythonQt does not convert a Path: {value!r}; give str(path)")
    if isinstance(value, np.generic) and not isinstance(value, float):
        raise PythonQtError(
            f"PythonQt does not convert {type(value).__name__} of NumPy; give int(value) or bool(value)"
        )
    if isinstance(value, FunctionType | MethodType | functools.partial):
        return _guarded(value)
    if isinstance(value, dict):
        return {key: unwrap(item) for key, item in value.items()}
    return [unwrap(item) for item in value] if isinstance(value, list | tuple) else value


def _guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function whose exceptions go to the console, as PythonQt's do, and not to PySide6."""

    def call(*arguments: Any) -> Any:
        return console.run(function, *(wrap(argument) for argument in arguments))

    return call


def _refuse_keywords(name: str, keywords: dict[str, Any]) -> None:
    if keywords:
        raise PythonQtError(f"{name}() takes no keyword arguments in PythonQt: {', '.join(keywords)}")


def _call(name: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    given = [unwrap(argument) for argument in arguments]
    try:
        return wrap(function(*given))
    except TypeError:
        if not any(isinstance(argument, float) for argument in given):
            raise
    # PythonQt takes a float for an int and cuts off what is behind the point.
    return wrap(function(*(int(argument) if isinstance(argument, float) else argument for argument in given)))


class QtMethod:
    """A method of a Qt object or class."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self._name = name
        self._function = function

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        _refuse_keywords(self._name, keywords)
        return _call(self._name, self._function, arguments)


class SignalFunction:
    """A signal as an attribute: called, it is emitted; ``connect`` and ``disconnect`` are there too."""

    def __init__(self, owner: Wrapper, name: str) -> None:
        self._owner = owner
        self._name = name

    def __call__(self, *arguments: Any, **keywords: Any) -> None:
        _refuse_keywords(self._name, keywords)
        getattr(self._owner._wrapped_or_raise(), self._name).emit(*map(unwrap, arguments))

    def connect(self, receiver: Callable[..., Any]) -> bool:
        """Connect the signal to a function."""
        return self._owner.connect(longest_signature(self._owner._wrapped_or_raise(), self._name), receiver)

    def disconnect(self, receiver: Callable[..., Any]) -> bool:
        """Undo :meth:`connect`."""
        return self._owner.disconnect(longest_signature(self._owner._wrapped_or_raise(), self._name), receiver)


class WrapperType(type):
    """The type of Qt classes: static methods and enumerations are found on the class."""

    _qt_class: Any

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        value = getattr(cls._qt_class, "exec" if name == "exec_" else name)
        if isinstance(value, enum.Enum):
            return EnumValue(value)
        if isinstance(value, type) and issubclass(value, enum.Enum):
            return EnumType(value)
        if isinstance(value, type):
            return wrapper_class(value)
        if callable(value):
            return QtMethod(name, value)
        raise AttributeError(f"{cls.__name__} has no attribute {name!r} in PythonQt")


class Wrapper(metaclass=WrapperType):
    """A Qt object as PythonQt shows it."""

    __slots__ = ("_object",)
    _qt_class: Any = None

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        generated = _generated_class(type(self))
        _refuse_keywords(generated.__name__, keywords)
        kind = generated._qt_class if type(self) is generated else _derived(type(self), generated)
        wrapped = _constructed(kind, arguments)
        object.__setattr__(self, "_object", wrapped)
        if type(self) is not generated:
            wrapped._pythonqt_wrapper = self

    @classmethod
    def _around(cls, wrapped: Any) -> Wrapper:
        made = cls.__new__(cls)
        object.__setattr__(made, "_object", wrapped)
        return made

    def _wrapped_or_raise(self) -> Any:
        try:
            wrapped = object.__getattribute__(self, "_object")
        except AttributeError:
            raise PythonQtError(f"{type(self).__name__}: the constructor of the Qt class was not called") from None
        if not shiboken6.isValid(wrapped):
            raise ValueError(f"Trying to use a {type(self).__name__} that was deleted by Qt")
        return wrapped

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        wrapped = self._wrapped_or_raise()
        if isinstance(wrapped, QtCore.QObject):
            qt_name = "objectName" if name == "name" and not _has_property(wrapped, "name") else name
            if _has_property(wrapped, qt_name):
                return wrap(wrapped.property(qt_name))
            if name in dir(type(wrapped)) and isinstance(getattr(wrapped, name), QtCore.SignalInstance):
                return SignalFunction(self, name)
            if name in getattr(type(wrapped), "hidden_from_python", ()):
                raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        value = getattr(wrapped, "exec" if name == "exec_" else name)
        if isinstance(value, enum.Enum):
            return EnumValue(value)
        return QtMethod(name, value) if callable(value) else wrap(value)

    def __setattr__(self, name: str, value: Any) -> None:
        wrapped = self._wrapped_or_raise()
        if isinstance(wrapped, QtCore.QObject):
            qt_name = "objectName" if name == "name" and not _has_property(wrapped, "name") else name
            if _has_property(wrapped, qt_name):
                _set_property(wrapped, qt_name, value)
                return
        if type(self) is _generated_class(type(self)):
            raise AttributeError(
                f"{type(self).__name__} has no property {name!r}, and PythonQt lets nobody add attributes of his own"
            )
        object.__setattr__(self, name, value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Wrapper):
            return NotImplemented
        mine, its = object.__getattribute__(self, "_object"), object.__getattribute__(other, "_object")
        if isinstance(mine, QtCore.QObject) or isinstance(its, QtCore.QObject):
            if not (shiboken6.isValid(mine) and shiboken6.isValid(its)):
                return mine is its
            return shiboken6.getCppPointer(mine) == shiboken6.getCppPointer(its)
        return bool(mine == its)

    def __hash__(self) -> int:
        wrapped = object.__getattribute__(self, "_object")
        if isinstance(wrapped, QtCore.QObject) and shiboken6.isValid(wrapped):
            return hash(shiboken6.getCppPointer(wrapped))
        return hash(type(wrapped))

    def __bool__(self) -> bool:
        # A wrapper whose object Qt has deleted is false in PythonQt.
        return shiboken6.isValid(object.__getattribute__(self, "_object"))

    def __repr__(self) -> str:
        return f"{type(self).__name__} (host)"

    def className(self) -> str:
        """Return the name of the C++ class."""
        return meta_of(self._wrapped_or_raise()).className()

    def inherits(self, class_name: str) -> bool:
        """Return whether the object is of a class or of one derived from it."""
        wrapped = self._wrapped_or_raise()
        return bool(wrapped.inherits(class_name)) or class_name in {base.__name__ for base in type(wrapped).__mro__}

    def delete(self) -> None:
        """Delete the C++ object now."""
        shiboken6.delete(self._wrapped_or_raise())

    def setProperty(self, name: str, value: Any) -> bool:
        """Set a property, of the class or a dynamic one."""
        return bool(self._wrapped_or_raise().setProperty(name, unwrap(value)))

    def findChild(self, kind: Any, name: str = "") -> Any:
        """Return the first child of a class (a wrapper's, or its name) with a name."""
        found = self.findChildren(kind, name)
        return found[0] if found else None

    def findChildren(self, kind: Any, name: str = "") -> tuple[Any, ...]:
        """Return the children of a class (a wrapper's, or its name), at any depth, with a name if one is given."""
        qt_class = kind._qt_class if isinstance(kind, WrapperType) else QtCore.QObject
        children = self._wrapped_or_raise().findChildren(qt_class)
        if isinstance(kind, str):
            children = [child for child in children if child.inherits(kind) or type(child).__name__ == kind]
        return tuple(wrap(child) for child in children if not name or child.objectName() == name)

    def connect(self, signal: str, receiver: Any, slot: str | None = None) -> bool:
        """Connect a signal, given by its C++ signature, to a function or to a slot of another object.

        Raises
        ------
        PythonQtError
            If there is no such signal; PythonQt prints a warning and returns False.
        """
        wrapped = self._wrapped_or_raise()
        if slot is not None:
            receiver = getattr(receiver, slot.partition("(")[0])
        if not callable(receiver):
            raise PythonQtError(f"connect('{signal}'): the receiver cannot be called: {receiver!r}")
        wanted = bytes(QtCore.QMetaObject.normalizedSignature(signal)).decode()
        relay = relay_to(receiver, parameter_count(wanted), wrap)
        bound_signal(wrapped, wanted).connect(relay)
        connections_of(wrapped).relays.append((wanted, receiver, relay))
        return True

    def disconnect(self, signal: str, receiver: Any = None, slot: str | None = None) -> bool:
        """Undo :meth:`connect`; without a receiver, for all of the signal's."""
        wrapped = self._wrapped_or_raise()
        if slot is not None:
            receiver = getattr(receiver, slot.partition("(")[0])
        wanted = bytes(QtCore.QMetaObject.normalizedSignature(signal)).decode()
        bound = bound_signal(wrapped, wanted)
        connections = connections_of(wrapped)
        ending = [item for item in connections.relays if item[0] == wanted and receiver in (None, item[1])]
        for item in ending:
            bound.disconnect(item[2])
            connections.relays.remove(item)
        return bool(ending)


def wrapper_class(qt_class: type) -> type[Wrapper]:
    """Return the class that stands for one of PySide6's; none is derived from another, as in PythonQt."""
    if qt_class not in _CLASSES:
        name = getattr(qt_class, "pythonqt_name", qt_class.__name__)
        _CLASSES[qt_class] = WrapperType(name, (Wrapper,), {"__slots__": (), "_qt_class": qt_class})
    return _CLASSES[qt_class]


def _generated_class(kind: type) -> Any:
    return next(base for base in kind.__mro__ if base.__dict__.get("_qt_class") is not None)


def _derived(kind: type, generated: Any) -> type:
    """Return a class of PySide6 whose virtual methods call those that a class in Python defines."""
    overrides: dict[str, Any] = {}
    for base in reversed(kind.__mro__[: kind.__mro__.index(generated)]):
        for name, function in vars(base).items():
            if isinstance(function, FunctionType) and not name.startswith("_") and hasattr(generated._qt_class, name):
                overrides[name] = _override(name)
    return type(kind.__name__, (generated._qt_class,), overrides)


def _override(name: str) -> Callable[..., Any]:
    def method(self: Any, *arguments: Any) -> Any:
        owner = getattr(self, "_pythonqt_wrapper", None)
        if owner is None:  # called by Qt's own constructor
            return getattr(super(type(self), self), name)(*arguments)
        function = inspect.getattr_static(type(owner), name)
        return unwrap(console.run(function, owner, *(wrap(argument) for argument in arguments)))

    return method


def _constructed(kind: Any, arguments: tuple[Any, ...]) -> Any:
    given = [unwrap(argument) for argument in arguments]
    try:
        return kind(*given)
    except TypeError:
        if not any(isinstance(argument, float) for argument in given):
            raise
    return kind(*(int(argument) if isinstance(argument, float) else argument for argument in given))


def _has_property(wrapped: QtCore.QObject, name: str) -> bool:
    return meta_of(wrapped).indexOfProperty(name) >= 0


def _set_property(wrapped: QtCore.QObject, name: str, value: Any) -> None:
    meta = meta_of(wrapped)
    described = meta.property(meta.indexOfProperty(name))
    kind = described.typeName()
    if not described.isWritable():
        raise AttributeError(f"The property {name!r} of {meta.className()} cannot be written")
    given = unwrap(value)
    if isinstance(given, float) and kind in ("int", "uint"):
        given = int(given)
    if isinstance(given, int | float | str) and not _same_family(given, kind):
        raise PythonQtError(f"The property {name!r} of type {kind} does not take {type(given).__name__} {given!r}")
    if not wrapped.setProperty(name, given):
        raise PythonQtError(f"The property {name!r} of type {kind} does not take {type(value).__name__} {value!r}")


def _same_family(value: Any, kind: str) -> bool:
    if kind == "bool":
        return isinstance(value, int)
    if kind in ("int", "uint", "double"):
        return isinstance(value, int | float) and not isinstance(value, str)
    return kind != "QString" or isinstance(value, str)


def with_setters(kind: Any) -> Any:
    """Give a stand-in the slot ``setName`` of each property ``name`` that can be written and has none."""
    for name, value in list(vars(kind).items()):
        setter = f"set{name[0].upper()}{name[1:]}"
        if isinstance(value, QtCore.Property) and not hasattr(kind, setter) and value.fset is not None:
            setattr(kind, setter, value.fset)
    return kind


def disconnect_python(wrapped: QtCore.QObject) -> None:
    """Disconnect all Python functions from an object's signals."""
    connections = connections_of(wrapped)
    for signature, _, relay in connections.relays:
        bound_signal(wrapped, signature).disconnect(relay)
    connections.relays.clear()


def module_classes(*modules: Any) -> Callable[[str], Any]:
    """Return a module's ``__getattr__`` that finds the classes of PySide6's modules, wrapped."""

    def find(name: str) -> Any:
        for module in modules:
            value = (
                module.__dict__.get(name)
                if isinstance(module.__dict__.get(name), type)
                else getattr(module, name, None)
            )
            if isinstance(value, type):
                return wrapper_class(value)
            if callable(value):
                return QtMethod(name, value)
        raise AttributeError(f"qt has no {name!r}")

    return find
