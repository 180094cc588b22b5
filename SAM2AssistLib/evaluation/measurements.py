"""A measurement as it is asked for, put together: what runs, what is kept, and what is written in the end."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from SAM2AssistLib.engine import store as model_store
from SAM2AssistLib.engine.catalogue import find_model
from SAM2AssistLib.errors import InputError
from SAM2AssistLib.evaluation.automatic import OrganPlan, OrganScore, measure_organs
from SAM2AssistLib.evaluation.cases import Case, find_cases, names_lacking
from SAM2AssistLib.evaluation.interactive import DEFAULT_CLICKS, Trial, users
from SAM2AssistLib.evaluation.methods import EngineMethod
from SAM2AssistLib.evaluation.organ_report import write_organ_report
from SAM2AssistLib.evaluation.organs import PUBLISHED, Protocol
from SAM2AssistLib.evaluation.peers import make_peers
from SAM2AssistLib.evaluation.report import About, write_report
from SAM2AssistLib.evaluation.running import Plan, Progress, measure
from SAM2AssistLib.evaluation.seen import learned_from
from SAM2AssistLib.evaluation.sources import AutoSegment, FromBoxes, FromFiles, Source, SupportDraws
from SAM2AssistLib.evaluation.store import Store
from SAM2AssistLib.prompting.self_prompt import embedded_adapter, has_head, load_finder, load_self_prompter

if TYPE_CHECKING:
    from SAM2AssistLib.engine.loading import Engine

INTERACTIVE = ("cvpr25", "clicks", "human")
WHOLE_CASES = ("auto", "support", *PUBLISHED)
PROTOCOLS = (*INTERACTIVE, *WHOLE_CASES)
RANDOM = ("cvpr25", "human", "support")
DEFAULT_SEEDS = {"human": 3, "support": 5}
"""Repetitions of what is random, where one would say too little."""


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes
    ----------
    data, part, cases, structures, least_voxels : what is measured on; all cases and structures if empty.
    protocol : of `PROTOCOLS`.
    out : folder of the results.
    clicks, seeds : None for the protocol's own.
    peers : names of peers; same_clicks : whether they get our clicks.
    predictions : folder of results to score instead of segmenting.
    supports, support_part : how many support cases a draw has, and the part of the data that they are drawn from.
    model, adapter, device : what segments.
    """

    data: Path
    protocol: str
    out: Path
    part: str | None = None
    cases: tuple[str, ...] = ()
    structures: tuple[str, ...] = ()
    least_voxels: int = 500
    clicks: int | None = None
    seeds: int | None = None
    peers: tuple[str, ...] = ()
    same_clicks: bool = True
    predictions: Path | None = None
    supports: int = 1
    support_part: str | None = None
    model: str = "mini"
    adapter: Path | None = None
    device: str = "auto"

    @property
    def repetitions(self) -> int:
        """How often what is random is repeated."""
        return DEFAULT_SEEDS.get(self.protocol, 1) if self.seeds is None else self.seeds

    @property
    def corrections(self) -> int:
        """How many clicks follow the first prompt."""
        return DEFAULT_CLICKS.get(self.protocol, 0) if self.clicks is None else self.clicks

    def settings(self) -> dict[str, Any]:
        """Return all that decides the result on a case, as JSON."""
        files = self.predictions is not None
        return {
            "protocol": self.protocol,
            "data": self.data.resolve().name,
            "model": None if files else self.model,
            "weights": None if files else _digest(model_store.weights_path(find_model(self.model))),
            "adapter": None if self.adapter is None else self.adapter.resolve().name,
            "adapter_weights": None if self.adapter is None else _digest_of_all(self.adapter),
            "clicks": self.corrections,
            "seeds": self.repetitions,
            "structures": list(self.structures),
            "least_voxels": self.least_voxels if self.protocol in INTERACTIVE else None,
            "peers": list(self.peers),
            "same_clicks": self.same_clicks if self.peers else None,
            "predictions": self.predictions.resolve().name if self.predictions else None,
            "supports": self.supports if self.protocol == "support" else None,
            "support_part": self.support_part if self.protocol == "support" else None,
        }

    def seen(self, cases: Sequence[Case]) -> tuple[str, ...]:
        """Name those of the cases that what segments has learned from; see `learned_from`."""
        return () if self.predictions is not None else tuple(learned_from(cases, self.model, self.adapter))


class Interactive:
    """A measurement of `INTERACTIVE`.

    Parameters
    ----------
    request : what is asked for.
    cases : that it is measured on.
    """

    def __init__(self, request: Request, cases: Sequence[Case]) -> None:
        self.request, self.cases = request, cases
        self.settings, self.seen = request.settings(), request.seen(cases)
        self.engine = _engine(request)
        self.plan = Plan(
            methods=(EngineMethod(self.engine), *make_peers(request.peers, self.engine)),
            users=tuple(users(request.protocol, request.repetitions)),
            clicks=request.corrections,
            structures=request.structures,
            least_voxels=request.least_voxels,
            replay=request.same_clicks,
        )
        self.store = Store(request.out, self.settings, Trial)  # last, so that what is refused leaves no folder

    def run(self) -> Iterator[Progress]:
        """Measure what has not been measured yet."""
        return measure(self.cases, self.plan, self.store)

    def write(self, *, complete: bool) -> dict[str, Any]:
        """Write the report, without pictures if it is not complete; returns what ``results.json`` sums up."""
        about = About(self.request.protocol, self.settings, str(self.engine.model.device), complete, self.seen)
        content = write_report(self.store, self.cases, about, pictures=complete)
        if complete and not content["methods"]:
            raise InputError(
                f"No structure of {self.request.data} has {self.request.least_voxels} voxels or more; lower "
                "--least-voxels."
            )
        return content


class WholeCases:
    """A measurement of `WHOLE_CASES`.

    Parameters
    ----------
    request : what is asked for.
    cases : that it is measured on.
    """

    def __init__(self, request: Request, cases: Sequence[Case]) -> None:
        self.request, self.cases = request, cases
        self.settings, self.seen = request.settings(), request.seen(cases)
        self.device = "none"
        protocol = PUBLISHED.get(request.protocol)
        if protocol is not None:
            _check_organs(protocol, request.structures, cases)  # before a model is loaded
        source = self._source()
        organs = request.structures or (protocol.organs if protocol else _organs_of(cases, source))
        if protocol is not None:
            organs = tuple(organ for organ in protocol.organs if organ in organs)
        self.plan = OrganPlan(source, organs, protocol, request.repetitions if request.protocol == "support" else 1)
        self.store = Store(request.out, self.settings, OrganScore)  # last, so that what is refused leaves no folder

    def _source(self) -> Source:
        request = self.request
        if request.predictions is not None:
            return FromFiles(request.predictions)
        engine = _engine(request)
        self.device = str(engine.model.device)
        if request.protocol == "support":
            pool = find_cases(request.data, request.support_part)
            own = request.adapter if request.adapter is not None and has_head(request.adapter) else None
            prompter = None if own is None else load_self_prompter(engine, own)
            return AutoSegment(engine, prompter, SupportDraws(tuple(pool), request.supports))
        adapter = request.adapter
        if adapter is None or (request.protocol != "auto" and not has_head(adapter)):
            return FromBoxes(engine)
        return AutoSegment(engine, load_finder(engine, adapter), None)

    def run(self) -> Iterator[Progress]:
        """Measure what has not been measured yet."""
        return measure_organs(self.cases, self.plan, self.store)

    def write(self, *, complete: bool) -> dict[str, Any]:
        """Write the report, without pictures if it is not complete; returns what ``results.json`` sums up."""
        about = About(self.request.protocol, self.settings, self.device, complete, self.seen)
        return write_organ_report(self.store, self.cases, about, self.plan, pictures=complete)


def measurement(request: Request, cases: Sequence[Case]) -> Interactive | WholeCases:
    """Put a measurement together; the model is loaded here.

    Raises
    ------
    InputError
        If what is asked for does not go together, or the result folder holds something else.
    ModelError
        If the model or the adapter cannot be used.
    """
    _check_goes_together(request)
    if request.protocol in INTERACTIVE:
        return Interactive(request, cases)
    if request.protocol == "auto" and request.adapter is None and request.predictions is None:
        request = replace(request, adapter=embedded_adapter(request.model))
    return WholeCases(request, cases)


def _check_goes_together(request: Request) -> None:
    """Refuse what a protocol would leave out of account, as if it had been measured so."""
    name, is_interactive = request.protocol, request.protocol in INTERACTIVE
    from_files, by_support = request.predictions is not None, request.protocol == "support"
    if is_interactive and from_files:
        raise InputError(f"Results in files cannot be clicked on; leave --predictions out of {name}.")
    if by_support and from_files:
        raise InputError("Results in files are not drawn anew for each draw; choose the protocol auto for them.")
    if from_files and request.adapter is not None:
        raise InputError("Results in files are scored as they are; leave --adapter out.")
    if request.peers and not is_interactive:
        raise InputError(f"The protocol {name} has no clicks for peers; leave --peers out.")
    if request.clicks is not None and not is_interactive:
        raise InputError(f"The protocol {name} has no clicks; leave --clicks out.")
    if request.seeds is not None and name not in RANDOM:
        raise InputError(f"Nothing is random in the protocol {name}; leave --seeds out.")
    if not by_support and (request.supports != 1 or request.support_part is not None):
        raise InputError(f"The protocol {name} has no support cases; leave --supports and --support-part out.")


def _engine(request: Request) -> Engine:
    from SAM2AssistLib.engine.loading import load_engine

    return load_engine(request.model, request.device, request.adapter)


def _check_organs(protocol: Protocol, wanted: Sequence[str], cases: Sequence[Case]) -> None:
    """Refuse to measure nothing, which a protocol may score as perfect."""
    organs = [organ for organ in protocol.organs if not wanted or organ in wanted]
    if not organs:
        raise InputError(
            f"The protocol {protocol.name} scores none of the structures asked for ({', '.join(wanted)}); choose from "
            f"{', '.join(protocol.organs)}."
        )
    if len(names_lacking(cases, organs)) == len(organs):
        raise InputError(
            f"The data name no organ that {protocol.name} scores ({', '.join(organs)}); check the names in "
            "labels.json, or choose the protocol auto."
        )


def _organs_of(cases: Sequence[Case], source: Source) -> tuple[str, ...]:
    """The structures that the data name and the source knows."""
    named = dict.fromkeys(name for case in cases for name in case.names)
    known = source.classes()
    organs = tuple(name for name in named if known is None or name in known)
    if not organs:
        raise InputError("The data and the model have no structure in common; check the names in labels.json.")
    return organs


def _digest_of_all(adapter: Path) -> str:
    """Tell adapters apart: by their updates, and by all the heads and parts beside them."""
    _digest(adapter / "adapter_model.safetensors")  # refuses what is no adapter
    parts = {file.name: _digest(file) for file in sorted(adapter.glob("*.safetensors"))}
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _digest(path: Path) -> str:
    """Tell weights apart: the first 16 digits of their SHA-256."""
    if not path.is_file():
        raise InputError(f"There is no file {path}; check the folder.")
    return model_store.file_sha256(path)[:16]
