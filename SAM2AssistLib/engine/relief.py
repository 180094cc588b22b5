"""What is done when memory runs out: one step down after the other, each told to the user, until the work goes on."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch

from SAM2AssistLib.engine.device import computes_in_bfloat16, inference_precision
from SAM2AssistLib.engine.products import Precision, precision_on

if TYPE_CHECKING:
    from SAM2AssistLib.engine.encoder import SliceEncoder
    from SAM2AssistLib.engine.network import Network

_LOG = logging.getLogger("SAM2AssistLib")

OUT_OF_MEMORY = "There is not enough memory for even one segment; close other programs or use a smaller model."


class Relief:
    """Makes a network need less memory.

    The order: smaller batches; features in host memory; bfloat16, if that is not in use already; the CPU. A step that
    does not apply (a CPU has no other host) is passed over.

    Parameters
    ----------
    network : whose encoder, precision and device are changed. The device is that of the model, for all sessions on it.

    Attributes
    ----------
    notes : a sentence for every step that was taken.
    half : whether bfloat16 is used throughout where the device would not do so by itself.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self.notes: list[str] = []
        options = network.options
        on_cpu = network.device.type == "cpu"
        self.half = bool(options.half) and not options.exact and on_cpu and computes_in_bfloat16(network.device)

    @property
    def products(self) -> Precision:
        """Return the types of the products that are prepared for inference."""
        return precision_on(self.network.device, half=self.half, exact=self.network.options.exact)

    def precision(self) -> AbstractContextManager[object]:
        """Return the context in which the network computes now."""
        device = self.network.device
        return torch.autocast(device.type, torch.bfloat16) if self.half else inference_precision(device)

    def step_down(self) -> bool:
        """Take the next step; False if there is none left."""
        steps: tuple[Callable[[], str | None], ...] = (
            self._smaller_batches,
            self._features_to_host,
            self._lower_precision,
            self._to_cpu,
        )
        for step in steps:
            note = step()
            if note is not None:
                self.notes.append(note)
                tell(note)
                return True
        return False

    @property
    def _encoder(self) -> SliceEncoder:
        return self.network.encoder

    def _smaller_batches(self) -> str | None:
        network, encoder = self.network, self._encoder
        if network.row_batch == 1 and encoder.batch == 1:
            return None
        network.row_batch, encoder.batch = max(1, network.row_batch // 4), max(1, encoder.batch // 4)
        return f"segments now go through the network {network.row_batch} at a time"

    def _features_to_host(self) -> str | None:
        if self.network.device.type == "cpu" or self._encoder.on_host:
            return None
        self._encoder.keep_on_host()
        return "features of slices are now kept in host memory"

    def _lower_precision(self) -> str | None:
        device = self.network.device
        if self.half or (device.type == "cuda" and computes_in_bfloat16(device)):
            return None
        self.half = True
        return "the network now computes in bfloat16, and masks may differ a little"

    def _to_cpu(self) -> str | None:
        if self.network.device.type == "cpu":
            return None
        self.half = False
        self._encoder.forget()
        self.network.model.to("cpu")
        if self._encoder.refiner is not None:
            self._encoder.refiner.to("cpu")
        return "the network now works on the CPU, which is slower"


def tell(note: str) -> None:
    """Say what is done now that memory has run out, and give back what is not in use."""
    _LOG.warning("Memory ran out: %s.", note)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
