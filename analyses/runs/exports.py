"""Write checkpoints that anyone can read: ordinary tensors, with layout and provenance beside them."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyses.checkpoints.reading.statedicts import METADATA_KEY
from analyses.common.study_files import SCHEMA_VERSION, atomic_path, plain
from analyses.layouts.layout import Layout
from manifold.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from spectra.networks.group_network import GroupNetwork

EXPORT_SUFFIXES = (".safetensors", ".pt")


def check_export_name(path: str | Path) -> None:
    """Refuse, before any work, an output name that is no checkpoint.

    Raises
    ------
    InputError
        If it ends neither in ``.safetensors`` nor in ``.pt``.
    """
    if Path(path).suffix not in EXPORT_SUFFIXES:
        raise InputError(f"--out {path}: expected a name that ends in {' or '.join(EXPORT_SUFFIXES)}")


def state_bytes(tensors: Mapping[str, Any], suffix: str, note: str | None = None) -> bytes:
    """A state dict in a container.

    Parameters
    ----------
    tensors : mapping of str to Tensor
    suffix : str
        ``.safetensors`` or ``.pt``.
    note : str, optional
        Text stored with it: under the metadata of safetensors, or beside ``model`` in a ``.pt`` file.

    Returns
    -------
    bytes
    """
    if suffix == ".safetensors":
        from safetensors.torch import save

        dense = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
        return save(dense, metadata={"format": "pt"} | ({METADATA_KEY: note} if note is not None else {}))
    import torch

    buffer = io.BytesIO()  # a path would put the temporary file's name into the archive
    torch.save(dict(tensors) if note is None else {"model": dict(tensors), METADATA_KEY: note}, buffer)
    return buffer.getvalue()


def write_checkpoint(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    *,
    layout: Layout | None,
    provenance: Mapping[str, Any],
    step: int | None = None,
    force: bool = False,
) -> Path:
    """Write tensors with their layout, so that every command reads them without options.

    Parameters
    ----------
    path : str or Path
        Ends in ``.safetensors``, or in ``.pt``: then ``torch.load(path, weights_only=True)["model"]``.
    tensors : mapping of str to Tensor
    layout : Layout or None
    provenance : mapping
        Stored as JSON.
    step : int, optional
        Training step.
    force : bool
        Replace an existing file.

    Returns
    -------
    Path

    Raises
    ------
    InputError
        If the name ends in something else.
    OutputExistsError
        If the file exists and ``force`` is false.
    """
    path = Path(path)
    check_export_name(path)
    note = {
        "schema_version": SCHEMA_VERSION,
        "layout": layout.to_dict() if layout is not None else None,
        "step": step,
        "provenance": dict(provenance),
    }
    with atomic_path(path, force=force) as temporary:
        temporary.write_bytes(state_bytes(tensors, path.suffix, json.dumps(plain(note), allow_nan=False)))
    return path


def write_network(
    path: str | Path,
    network: GroupNetwork,
    *,
    loss: str = "projected_mse",
    provenance: Mapping[str, Any],
    step: int | None = None,
    force: bool = False,
) -> Path:
    """Write a network as ``w_a, w_b, w_c`` (n x q, float64) with its layout; see `write_checkpoint`.

    Parameters
    ----------
    path : str or Path
    network : GroupNetwork
        Tied weights are written without ``w_b``.
    loss : str
        One of `analyses.layouts.layout.LOSSES`.
    provenance : mapping
    step : int, optional
    force : bool

    Returns
    -------
    Path
    """
    tensors = {"w_a": network.a, "w_c": network.c} | ({} if network.tied else {"w_b": network.b})
    layout = Layout(
        group=network.group.name,
        w_a="w_a",
        w_b=None if network.tied else "w_b",
        w_c="w_c",
        loss=loss,
        activation=network.activation.name,
        output_scale=network.output_scale,
    )
    return write_checkpoint(path, tensors, layout=layout, provenance=provenance, step=step, force=force)
