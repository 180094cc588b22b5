"""``slicer.parameterNodeWrapper``: typed attributes kept in a vtkMRMLScriptedModuleNode and connected to widgets.

The attributes are declared as in Slicer (``Docs/developer_guide/parameter_nodes``): an annotation with an optional
default; ``Annotated[float, WithinRange(0, 1)]`` and the like. Numbers, texts, booleans, enumerations, paths, lists,
tuples and dictionaries of these are kept as parameters, nodes as node references of the same name.
"""

from __future__ import annotations

import ast
import enum
import pathlib
import types
import typing
from collections.abc import Callable
from types import ModuleType
from typing import Any

import vtk

from . import console
from .parameter_widgets import WidgetLink, link_to

_UNSET = object()


class Validator:
    """Says whether a value may be."""

    def check(self, value: Any) -> None:
        """Raise ValueError if it may not."""


class WithinRange(Validator):
    """From a least to a greatest number, both included."""

    def __init__(self, minimum: float, maximum: float) -> None:
        self.minimum = minimum
        self.maximum = maximum

    def check(self, value: Any) -> None:
        """Raise ValueError outside the range."""
        if not self.minimum <= value <= self.maximum:
            raise ValueError(f"Value must be within range [{self.minimum}, {self.maximum}], not {value}")


class Minimum(Validator):
    """Not less than a number."""

    def __init__(self, minimum: float) -> None:
        self.minimum = minimum

    def check(self, value: Any) -> None:
        """Raise ValueError below it."""
        if value < self.minimum:
            raise ValueError(f"Value must be at least {self.minimum}, not {value}")


class Maximum(Validator):
    """Not more than a number."""

    def __init__(self, maximum: float) -> None:
        self.maximum = maximum

    def check(self, value: Any) -> None:
        """Raise ValueError above it."""
        if value > self.maximum:
            raise ValueError(f"Value must be at most {self.maximum}, not {value}")


class Choice(Validator):
    """One of several values."""

    def __init__(self, choices: list[Any]) -> None:
        self.choices = choices

    def check(self, value: Any) -> None:
        """Raise ValueError for another."""
        if value not in self.choices:
            raise ValueError(f"Value must be one of {self.choices}, not {value!r}")


class NotNone(Validator):
    """Anything but None."""

    def check(self, value: Any) -> None:
        """Raise ValueError for None."""
        if value is None:
            raise ValueError("Value must not be None")


class Decimals:
    """How many digits a widget shows."""

    def __init__(self, value: int) -> None:
        self.value = value


class SingleStep:
    """How far a widget steps."""

    def __init__(self, value: float) -> None:
        self.value = value


class Default:
    """The value where none was set."""

    def __init__(self, value: Any) -> None:
        self.value = value


class Parameter:
    """One attribute: its type, its rules and how it is kept in the node."""

    def __init__(self, name: str, annotation: Any, default: Any) -> None:
        self.name = name
        self.notes: tuple[Any, ...] = ()
        if typing.get_origin(annotation) is typing.Annotated:
            annotation, *notes = typing.get_args(annotation)
            self.notes = tuple(notes)
        self.optional = False
        if typing.get_origin(annotation) in (typing.Union, types.UnionType):
            members = [member for member in typing.get_args(annotation) if member is not type(None)]
            self.optional = len(members) < len(typing.get_args(annotation))
            if len(members) != 1:
                raise TypeError(f"The host's parameterNodeWrapper knows no unions but Optional ({name})")
            annotation = members[0]
        self.annotation = annotation
        self.kind = typing.get_origin(annotation) or annotation
        if not isinstance(self.kind, type):
            raise TypeError(f"The type of parameter {name} is not a type: {annotation!r}")
        noted = next((note.value for note in self.notes if isinstance(note, Default)), _UNSET)
        self.default = default if default is not _UNSET else noted if noted is not _UNSET else self._natural_default()
        if self.default is not None and not self.is_node:
            self.check(self.default)

    @property
    def is_node(self) -> bool:
        """Whether the value is a node of the scene."""
        return issubclass(self.kind, vtk.vtkObject)

    @property
    def validators(self) -> tuple[Validator, ...]:
        """The rules."""
        return tuple(note for note in self.notes if isinstance(note, Validator))

    def _natural_default(self) -> Any:
        if self.optional or self.is_node:
            return None
        if issubclass(self.kind, enum.Enum):
            return next(iter(self.kind))
        choice = next((note for note in self.notes if isinstance(note, Choice)), None)
        if choice is not None:
            return choice.choices[0]
        return self.kind()

    def check(self, value: Any) -> None:
        """Raise if a value is of another type or against the rules."""
        if value is None and (self.optional or self.is_node):
            return
        accepted: Any = self.kind
        if self.kind is float:
            accepted = (float, int)
        elif issubclass(self.kind, pathlib.PurePath):
            accepted = (pathlib.PurePath,)
        if not isinstance(value, accepted) or (isinstance(value, bool) and self.kind is not bool):
            raise TypeError(f"{self.name} is a {self.kind.__name__}, not a {type(value).__name__}: {value!r}")
        for validator in self.validators:
            validator.check(value)

    def written(self, value: Any) -> str:
        """Return a value as the node keeps it."""
        if value is None:
            return "None"
        if isinstance(value, enum.Enum):
            return value.name
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, list | tuple | dict):
            return repr(value)
        return str(value)

    def read(self, text: str) -> Any:
        """Return the value that was written."""
        if self.optional and text == "None":
            return None
        if issubclass(self.kind, enum.Enum):
            return self.kind[text]
        if self.kind is bool:
            return text == "true"
        if self.kind in (list, tuple, dict):
            return self.kind(ast.literal_eval(text))
        return self.kind(text)


def parameterNodeWrapper(decorated: type) -> type:
    """Make a class whose annotated attributes are kept in a parameter node."""
    hints = typing.get_type_hints(decorated, include_extras=True)
    parameters = {
        name: Parameter(name, annotation, decorated.__dict__.get(name, _UNSET)) for name, annotation in hints.items()
    }
    namespace = {name: value for name, value in vars(decorated).items() if name not in ("__dict__", "__weakref__")}
    namespace.update({name: _attribute(parameter) for name, parameter in parameters.items()})
    return type(decorated.__name__, (ParameterNode,), {**namespace, "allParameters": parameters})


def _attribute(parameter: Parameter) -> property:
    def get(self: ParameterNode) -> Any:
        return self.getValue(parameter.name)

    def put(self: ParameterNode, value: Any) -> None:
        self.setValue(parameter.name, value)

    return property(get, put)


class ParameterNode:
    """The base of all wrappers: one of them looks at one node."""

    allParameters: dict[str, Parameter]
    _own = ("parameterNode", "_prefix", "_links", "_observer", "_next_tag")

    def __init__(self, parameterNode: Any, prefix: str | None = None) -> None:
        self.parameterNode = parameterNode
        self._prefix = f"{prefix}." if prefix else ""
        self._links: dict[int, list[tuple[str, WidgetLink]]] = {}
        self._observer: int | None = None
        self._next_tag = 0
        for name, parameter in self.allParameters.items():
            if not parameter.is_node and not parameterNode.HasParameter(self._prefix + name):
                parameterNode.SetParameter(self._prefix + name, parameter.written(parameter.default))

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self._own and name not in self.allParameters:
            raise AttributeError(f"{type(self).__name__} has no parameter {name!r}")
        object.__setattr__(self, name, value)

    def getValue(self, name: str) -> Any:
        """Return a parameter's value."""
        parameter = self.allParameters[name]
        if parameter.is_node:
            return self.parameterNode.GetNodeReference(self._prefix + name)
        return parameter.read(self.parameterNode.GetParameter(self._prefix + name))

    def setValue(self, name: str, value: Any) -> None:
        """Set a parameter's value, after checking it."""
        parameter = self.allParameters[name]
        parameter.check(value)
        if parameter.is_node:
            if value is not None and value.GetScene() is None:
                raise ValueError(f"{name}: the node {value.GetName()} is in no scene")
            self.parameterNode.SetNodeReferenceID(self._prefix + name, value.GetID() if value is not None else None)
        else:
            self.parameterNode.SetParameter(self._prefix + name, parameter.written(value))

    def default(self, name: str) -> Any:
        """Return a parameter's default."""
        return self.allParameters[name].default

    def isParameter(self, name: str) -> bool:
        """Return whether there is such a parameter."""
        return name in self.allParameters

    def AddObserver(self, *arguments: Any) -> Any:
        """Observe the node."""
        return self.parameterNode.AddObserver(*arguments)

    def RemoveObserver(self, *arguments: Any) -> None:
        """Observe the node no more."""
        self.parameterNode.RemoveObserver(*arguments)

    def HasObserver(self, *arguments: Any) -> bool:
        """Return whether the node is observed."""
        return bool(self.parameterNode.HasObserver(*arguments))

    def StartModify(self) -> int:
        """Hold events back."""
        return int(self.parameterNode.StartModify())

    def EndModify(self, was_modifying: int) -> int:
        """Let events go."""
        return int(self.parameterNode.EndModify(was_modifying))

    def Modified(self) -> None:
        """Tell of a change."""
        self.parameterNode.Modified()

    def connectGui(self, gui: Any) -> int:
        """Connect the widgets that name a parameter in ``SlicerParameterName``; return what ends it.

        Raises
        ------
        ValueError
            If a widget names a parameter that is not there.
        """
        mapping = {}
        for widget in vars(gui).values():
            name = widget.property("SlicerParameterName") if hasattr(widget, "property") else None
            if name:
                if name not in self.allParameters:
                    raise ValueError(f"The widget {widget.objectName} names the parameter {name!r}, which is not there")
                mapping[name] = widget
        return self.connectParametersToGui(mapping)

    def connectParametersToGui(self, mapping: dict[str, Any]) -> int:
        """Connect parameters with widgets, in both directions."""
        links = []
        for name, widget in mapping.items():
            link = link_to(widget, self.allParameters[name])
            link.write(self.getValue(name))
            link.follow(self._from_widget(name, link))
            links.append((name, link))
        self._next_tag += 1
        self._links[self._next_tag] = links
        if self._observer is None:
            self._observer = self.parameterNode.AddObserver(vtk.vtkCommand.ModifiedEvent, self._to_widgets)
        return self._next_tag

    def disconnectGui(self, tag: int) -> None:
        """Undo a connection."""
        for _, link in self._links.pop(tag, ()):
            link.stop()
        if not self._links and self._observer is not None:
            self.parameterNode.RemoveObserver(self._observer)
            self._observer = None

    def _from_widget(self, name: str, link: WidgetLink) -> Callable[..., None]:
        def changed(*_: Any) -> None:
            value = link.read()
            if value != self.getValue(name):
                self.setValue(name, value)

        return changed

    def _to_widgets(self, *_: Any) -> None:
        for links in list(self._links.values()):
            for name, link in links:
                value = self.getValue(name)
                if link.read() != value:
                    console.run(link.write, value)


def make_module() -> ModuleType:
    """Return ``slicer.parameterNodeWrapper``."""
    module = ModuleType("slicer.parameterNodeWrapper", __doc__)
    names: tuple[Any, ...] = (
        parameterNodeWrapper, Validator, WithinRange, Minimum, Maximum, Choice, NotNone, Decimals, SingleStep,
        Default,
    )  # fmt: skip
    module.__dict__.update({item.__name__: item for item in names}, __all__=[item.__name__ for item in names])
    return module
