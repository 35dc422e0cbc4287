"""What a job asks of its host and its GPUs beyond their number.

Most jobs ask for nothing of it, so it travels as one optional document: in ``orchestrator_ready``, in stream entries,
and in the answers of the API.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final

#: Longest document that is stored.
LONGEST_WANTS: Final = 1024
#: A label that every host has: its own name.
NODE_LABEL: Final = "node"
_NOT_WORD: Final = re.compile(r"[^a-z0-9.]+")


@dataclass(frozen=True, slots=True)
class Alternative:
    """GPUs that a job takes when those that it named before are not free."""

    gpus: int
    gpu_memory_mib: int | None = None
    models: tuple[str, ...] = ()
    min_memory_mib: int | None = None
    mig_profile: str | None = None


@dataclass(frozen=True, slots=True)
class Wants:
    """Conditions on GPUs and host; all of them hold at once."""

    models: tuple[str, ...] = ()  # each GPU is of one of these
    min_memory_mib: int | None = None  # that each GPU has in all
    mig_profile: str | None = None  # each GPU is an instance of this profile; None: each is a whole card
    labels: tuple[tuple[str, str], ...] = ()  # that the host has, sorted
    cpus: int = 0  # of the host, counted against what it offers
    host_memory_mib: int = 0  # likewise
    alternatives: tuple[Alternative, ...] = ()  # other GPUs that would do, in order of preference
    model: str | None = None  # that its runner should have loaded: the name of a pool, or what pools have loaded
    pool: str | None = None  # that its runner is to join: it loads the model of this pool
    generation: int = 0  # of that pool

    def for_alternative(self, other: Alternative) -> "Wants":
        """Return the conditions for an alternative: its own on GPUs, these on the host."""
        return replace(
            self,
            models=other.models,
            min_memory_mib=other.min_memory_mib,
            mig_profile=other.mig_profile,
            alternatives=(),
        )

    def accepts_gpu(self, model: str, memory_mib: int, mig_profile: str | None) -> bool:
        """Tell whether a GPU meets the conditions on GPUs."""
        if mig_profile != self.mig_profile:
            return False
        if self.min_memory_mib is not None and memory_mib < self.min_memory_mib:
            return False
        return not self.models or any(is_model(model, wanted) for wanted in self.models)

    def accepts_labels(self, labels: Mapping[str, str]) -> bool:
        """Tell whether a host has every label asked for."""
        return all(labels.get(name) == value for name, value in self.labels)


@lru_cache(maxsize=4096)
def is_model(model: str, wanted: str) -> bool:
    """Tell whether a GPU's model is what somebody calls ``wanted``: its words, in a row, whatever the case.

    ``A100`` names ``NVIDIA A100-SXM4-40GB``; ``A10`` does not.
    """
    return f" {_words(wanted)} " in f" {_words(model)} "


@lru_cache(maxsize=4096)
def wants_text(wants: Wants | None) -> str | None:
    """Return the document as stored: equal conditions give equal text; None for no condition."""
    document = wants_document(wants)
    return json.dumps(document, separators=(",", ":"), sort_keys=True) if document else None


@lru_cache(maxsize=4096)
def wants_from(text: str | None) -> Wants | None:
    """Return what ``wants_text`` was given.

    Raises:
        ValueError: If the text is not of its making.
    """
    if not text:
        return None
    try:
        document = json.loads(text)
        return Wants(
            models=tuple(document.get("gpu_type", ())),
            min_memory_mib=document.get("min_memory_mib"),
            mig_profile=document.get("mig"),
            labels=tuple(sorted(document.get("constraints", {}).items())),
            cpus=int(document.get("cpus", 0)),
            host_memory_mib=int(document.get("memory_mib", 0)),
            alternatives=tuple(_alternative(other) for other in document.get("alternatives", ())),
            model=document.get("model"),
            pool=document.get("pool"),
            generation=int(document.get("generation", 0)),
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"malformed conditions: {error!r}") from error


def wants_document(wants: Wants | None) -> dict[str, Any]:
    """Return the conditions as people and programs read them, without those that were not given."""
    if wants is None:
        return {}
    document: dict[str, Any] = _gpu_document(wants)
    if wants.labels:
        document["constraints"] = dict(wants.labels)
    if wants.cpus:
        document["cpus"] = wants.cpus
    if wants.host_memory_mib:
        document["memory_mib"] = wants.host_memory_mib
    if wants.model is not None:
        document["model"] = wants.model
    if wants.pool is not None:
        document |= {"pool": wants.pool, "generation": wants.generation}
    if wants.alternatives:
        document["alternatives"] = [
            {"gpus": other.gpus}
            | ({} if other.gpu_memory_mib is None else {"gpu_memory_mib": other.gpu_memory_mib})
            | _gpu_document(other)
            for other in wants.alternatives
        ]
    return document


def describe_wants(wants: Wants | None) -> str:
    """Return the conditions in words that follow "it asks for a GPU"; empty for none."""
    if wants is None:
        return ""
    words = [f"of type {' or '.join(wants.models)}"] if wants.models else []
    if wants.min_memory_mib is not None:
        words.append(f"of at least {wants.min_memory_mib} MiB")
    if wants.mig_profile is not None:
        words.append(f"of MIG profile {wants.mig_profile}")
    words += [f"where {name}={value}" for name, value in wants.labels]
    if wants.cpus:
        words.append(f"with {wants.cpus} CPUs")
    if wants.host_memory_mib:
        words.append(f"with {wants.host_memory_mib} MiB of the host's memory")
    return "".join(f" {word}" for word in words)


def _gpu_document(asked: Wants | Alternative) -> dict[str, Any]:
    document: dict[str, Any] = {}
    if asked.models:
        document["gpu_type"] = list(asked.models)
    if asked.min_memory_mib is not None:
        document["min_memory_mib"] = asked.min_memory_mib
    if asked.mig_profile is not None:
        document["mig"] = asked.mig_profile
    return document


def _alternative(document: Mapping[str, Any]) -> Alternative:
    return Alternative(
        gpus=int(document["gpus"]),
        gpu_memory_mib=document.get("gpu_memory_mib"),
        models=tuple(document.get("gpu_type", ())),
        min_memory_mib=document.get("min_memory_mib"),
        mig_profile=document.get("mig"),
    )


def _words(text: str) -> str:
    return _NOT_WORD.sub(" ", text.lower()).strip()
