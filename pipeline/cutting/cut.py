"""Cut a smaller model out of a teacher, check that it loads again as what was kept, and publish it."""

from __future__ import annotations

import copy
import platform
from importlib.metadata import version
from typing import Any

import torch
import transformers

from pipeline.cutting.choice import Kept, choose_layers, choose_width, require_layers, require_smaller
from pipeline.cutting.config import CutConfig
from pipeline.cutting.depth import keep_layers, smaller_weights
from pipeline.cutting.finished import finished_cut, licence_of, recorded_settings
from pipeline.cutting.importance import Importance, measure
from pipeline.cutting.rebuilding import layers_of, num_layers_of
from pipeline.cutting.record import RECORD_NAME, CutRecord, Size, model_card
from pipeline.cutting.same_function import require_same_function
from pipeline.cutting.text import open_text
from pipeline.cutting.width import family_of, whole_width
from pipeline.errors import UncuttableTeacherError
from pipeline.teacher.loading import load_as_stored, load_tokenizer, name_of, quantization_of
from pipeline.teacher.model import Teacher
from storage.disk.directories import publishing_path
from storage.disk.files import refusals
from storage.errors import UnusableModelError
from storage.tensors.checkpoints.loading import load_checkpoint
from storage.tensors.devices import find_device


def cut(config: CutConfig) -> CutRecord:
    """Write a smaller model to --out and return its record; with `plan`, write nothing.

    A cut with the same settings out of the same weights that is there already stays as it is.

    Raises CutTakenError, TeacherError (UncuttableTeacherError, NoSuchLayerError, ForeignTokenizerError, …), DataError,
    CacheError, ConfigError or WriteRefusedError.
    """
    finished = finished_cut(config)
    if finished is not None:
        return finished
    tokenizer = load_tokenizer(config.run)
    model, weights_sha256 = load_as_stored(config.run)
    _require_cuttable(config, model)
    importance, text = _measured(config, model, tokenizer, weights_sha256) if config.needs_text else (None, None)
    kept = _choose(config, model, importance)
    record = _record(config, model, kept, importance, text, weights_sha256)
    if not config.plan:
        smaller = keep_layers(model, kept.layers, kept.widths)
        del model
        _publish(config, smaller, tokenizer, record)
    return record


def _publish(config: CutConfig, smaller: Any, tokenizer: Any, record: CutRecord) -> None:
    """Write all files, and publish them if the model that they hold is the one in memory."""
    with publishing_path(config.out) as staged:
        with refusals(config.out):
            smaller.save_pretrained(staged)
            tokenizer.save_pretrained(staged)
            (staged / RECORD_NAME).write_text(record.to_json(), encoding="utf-8")
            (staged / "README.md").write_text(model_card(record, config.out.resolve().name), encoding="utf-8")
        try:
            again = load_checkpoint(transformers, str(staged), dtype="auto", local_files_only=True).eval()
        except UnusableModelError as error:
            raise UncuttableTeacherError(f"what was written does not load again: {error.reason}") from error
        require_same_function(again, smaller)


def _require_cuttable(config: CutConfig, model: Any) -> None:
    """Raise UncuttableTeacherError, NoSuchLayerError or ConfigError for what can be refused before a text is read."""
    method = quantization_of(model)
    if method is not None:
        raise UncuttableTeacherError(f"its weights are quantised ({method})", "give the model as it was before")
    require_layers(config, num_layers_of(model))
    layers_of(model)
    if config.cuts_width:
        family_of(model, cuts_heads=config.keep_heads < 1)
        require_smaller(config, whole_width(model))


def _measured(config: CutConfig, model: Any, tokenizer: Any, weights_sha256: str) -> tuple[Importance, dict[str, Any]]:
    """Return what each part of the teacher does to the text, and what the text is.

    A GPU computes in the model's own number format, a CPU in float32: half precision is many times slower there.
    """
    device = find_device(config.device)
    measured = copy.deepcopy(model).float() if device.type == "cpu" and model.dtype != torch.float32 else model
    teacher = Teacher(
        measured.to(device),
        tokenizer,
        device,
        name=name_of(config.run),
        revision=config.revision,
        weights_sha256=weights_sha256,
        weights_bytes=sum(weight.nbytes for weight in model.parameters()),
    )
    family = family_of(model, cuts_heads=config.keep_heads < 1) if config.cuts_width else None
    with open_text(config, teacher) as text:
        importance = measure(measured, text.batches(quiet=config.quiet), teacher.isolation, family)
    model.to("cpu")
    return importance, text.facts | {"num_tokens": text.num_tokens}


def _choose(config: CutConfig, model: Any, importance: Importance | None) -> Kept:
    layers = choose_layers(config, num_layers_of(model), importance)
    if not config.cuts_width:
        return Kept(layers=layers)
    assert importance is not None
    assert importance.neurons_LF is not None
    whole, heads_LH = whole_width(model), importance.heads_LH
    widths = [
        choose_width(config, whole, importance.neurons_LF[i], None if heads_LH is None else heads_LH[i]) for i in layers
    ]
    return Kept(layers=layers, widths=tuple(widths))


def _record(
    config: CutConfig,
    model: Any,
    kept: Kept,
    importance: Importance | None,
    text: dict[str, Any] | None,
    weights_sha256: str,
) -> CutRecord:
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        after = smaller_weights(model, parameters, kept.layers, kept.widths)
    return CutRecord(
        teacher={
            "id": name_of(config.run),
            "revision": getattr(model.config, "_commit_hash", None) or config.revision,
            "architecture": type(model).__name__,
            "licence": licence_of(config.teacher, config.revision) or getattr(model.config, "license", None),
            "weights_sha256": weights_sha256,
        },
        settings=recorded_settings(config),
        text=text,
        layers={
            "kept": list(kept.layers),
            "of": num_layers_of(model),
            "importance": None if importance is None else list(importance.layers),
        },
        **_widths_record(config, model, kept, importance),
        dtype=str(model.dtype).removeprefix("torch."),
        before=_size(parameters),
        after=_size(after),
        software={"python": platform.python_version()}
        | {name: version(name) for name in ("teachonce", "torch", "transformers")},
    )


def _widths_record(
    config: CutConfig, model: Any, kept: Kept, importance: Importance | None
) -> dict[str, dict[str, Any] | None]:
    """Return what is stated of neurons and heads, by kept layer."""
    if kept.widths is None:
        return {"neurons": None, "heads": None}
    whole = whole_width(model)
    heads_LH = importance.heads_LH if importance is not None else None
    neurons = {"kept": [list(width.neurons) for width in kept.widths], "of": len(whole.neurons)}
    heads = {
        "kept": [list(width.heads) for width in kept.widths],
        "of": len(whole.heads),
        "kept_key_heads": [list(width.key_heads) for width in kept.widths],
        "importance": None if heads_LH is None else heads_LH.tolist(),
    }
    return {"neurons": neurons if config.keep_mlp < 1 else None, "heads": heads if config.keep_heads < 1 else None}


def _size(parameters: dict[str, torch.Tensor]) -> Size:
    return Size(
        num_parameters=sum(weight.numel() for weight in parameters.values()),
        weights_bytes=sum(weight.nbytes for weight in parameters.values()),
    )
