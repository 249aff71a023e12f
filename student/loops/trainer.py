"""A Trainer of transformers that learns from a cache."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments

from storage.errors import ConfigError
from student.errors import CheckpointError
from student.loops.dataset import CacheDataset
from student.loops.errors import AdapterError, IdsBeyondStudentError, LostSharesError
from student.loops.loss import IGNORED_LABEL, distillation_loss
from student.losses.divergences import Divergence
from student.model.architecture import hidden_states, num_vocabulary_rows, output_head
from student.model.fitting import check_fits
from student.model.tokenizers import check_tokenizer

# Key of the dataset's state in a checkpoint's trainer_state.json.
_STATE_KEY = "CacheDataset"
_RUN = "teachonce_run"


class DistillationTrainer(Trainer):  # type: ignore[misc]
    """transformers.Trainer whose train_dataset is a cache and whose loss is student.distillation_loss.

    Mixed precision, gradient accumulation and checkpointing, several processes (torchrun, accelerate launch),
    callbacks, loggers and PEFT models work as in any Trainer. The loss of a step is the mean over the wanted targets of
    all processes and accumulated batches. A checkpoint keeps the place in the cache, so a run that is resumed reads on
    there, in any number of processes; rows are never read again to get there. The `epoch` that is logged counts passes
    over the cache's rows.

    With forward_kl and a sampled tail, the loss is a cross-entropy: the KL divergence plus the teacher's entropy.

    An eval_dataset is a CacheDataset of the validation split with num_epochs=1 and shuffle=False, or anything else that
    Trainer's own loader gives in such dictionaries. Its eval_loss is the mean of the batches' means.
    """

    # get_batch_samples counts the targets of all processes and accumulated batches, and compute_loss divides by them.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: Any,
        args: TrainingArguments | None = None,
        *,
        train_dataset: CacheDataset | str | Path | None = None,
        divergence: Divergence = "forward_kl",
        temperature: float = 1.0,
        label_weight: float = 0.0,
        **settings: Any,
    ) -> None:
        """Check that the model, a causal language model or a PEFT model of one, fits the cache.

        train_dataset: a CacheDataset without num_epochs and for this temperature, whose batch_rows count in place of
        per_device_train_batch_size; or a cache, whose soft targets are read in batches of per_device_train_batch_size
        rows per process, with data_seed or seed. divergence, temperature, label_weight: those of distillation_loss.
        settings: the other arguments of Trainer. args.max_steps may be left out: num_train_epochs counts passes over
        the cache's rows.

        Raise ConfigError, the errors of CacheDataset, the errors of a student that does not fit the cache
        (VocabularyMismatchError, StudentContextError, ArchitectureError, BrokenStudentError, TokenizerMismatchError),
        IdsBeyondStudentError for a CacheDataset that holds ids beyond the student's vocabulary, LostSharesError when
        accelerate takes fewer processes together than torch.distributed, as it does without a GPU unless told to use
        the CPU, and AdapterError for a PEFT model whose adapter is not in the body.
        """
        args = copy.copy(args) if args is not None else TrainingArguments()
        if args.n_gpu > 1:
            raise ConfigError(f"{args.n_gpu} GPUs in one process; start one for each, by torchrun or accelerate launch")
        self._base = model.get_base_model() if hasattr(model, "get_base_model") else model
        if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
            raise AdapterError(_name_of(self._base), "puts tokens before the text")
        if isinstance(train_dataset, str | Path):
            train_dataset = self._open(train_dataset, args, temperature)
        if train_dataset is not None:
            self._require_fit(train_dataset)
            _require_all_shares(train_dataset, args)
            _set_steps(args, train_dataset)
            settings["callbacks"] = [*(settings.get("callbacks") or []), _PlaceInCache(train_dataset)]
        args.ignore_data_skip = True  # _PlaceInCache resumes the dataset without reading what was read
        self._settings: dict[str, Any] = {
            "divergence": divergence,
            "temperature": temperature,
            "label_weight": label_weight,
        }
        _let_forward_run(self._base)
        super().__init__(model, args, train_dataset=train_dataset, **settings)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return a loader of this process's batches. accelerate must not share them among processes again."""
        return self._loader(self.train_dataset)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Return a loader of this process's batches of a CacheDataset, and Trainer's own loader for other data."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        return self._loader(dataset) if isinstance(dataset, CacheDataset) else super().get_eval_dataloader(eval_dataset)

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Tensor]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], Tensor]:
        """Return the batches of a step, and the number of wanted targets in those of all processes."""
        batches = list(islice(epoch_iterator, num_batches))
        counts = [(batch["labels"] != IGNORED_LABEL).sum() for batch in batches]
        num_targets = torch.stack(counts).sum().to(device)
        return batches, self.accelerator.reduce(num_targets, "sum").clamp(min=1)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        """Return the loss, times the number of processes: what they have in the mean is the loss of the step.

        Without num_items_in_batch, as in an evaluation, return the mean over the wanted targets of this batch.
        """
        num_targets = None if num_items_in_batch is None else num_items_in_batch / self.args.world_size
        # Inside the forward pass of whatever wraps the model: that is where it casts, gathers and prepares to reduce.
        loss = model(**{_RUN: functools.partial(self._loss, inputs, num_targets)})
        return (loss, {"loss": loss}) if return_outputs else loss

    def prediction_step(self, model: Any, inputs: dict[str, Tensor], *_: Any, **__: Any) -> tuple[Tensor, None, None]:
        """Return the loss of a batch alone: nothing else of an evaluation is kept."""
        with torch.no_grad():
            return self.compute_loss(model, self._prepare_inputs(inputs)).detach(), None, None

    def _prepare_inputs(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the batch on this process's device. Trainer's own way rounds it to bfloat16 for DeepSpeed."""
        return {name: value.to(self.args.device, non_blocking=True) for name, value in inputs.items()}

    def _loss(self, batch: dict[str, Tensor], num_targets: Tensor | None) -> Tensor:
        head = output_head(self._base)
        return distillation_loss(
            hidden_states(self._base, batch["input_ids"], batch["position_ids"]),
            head.weight_VD,
            batch,
            num_targets=num_targets,
            head_bias=head.bias_V,
            logit_scale=head.scale,
            logit_cap=head.cap_nats,
            **self._settings,
        )

    def _open(self, cache: str | Path, args: TrainingArguments, temperature: float) -> CacheDataset:
        return CacheDataset(
            cache,
            batch_rows=args.per_device_train_batch_size * args.world_size,
            seed=args.seed if args.data_seed is None else args.data_seed,
            temperature=temperature,
            num_vocabulary_rows=num_vocabulary_rows(self._base),
        )

    def _require_fit(self, dataset: CacheDataset) -> None:
        name = _name_of(self._base)
        head = self._base.get_output_embeddings()
        if hasattr(head, "base_layer") or hasattr(head, "modules_to_save"):
            raise AdapterError(name, "changes its output head")
        check_fits(self._base, dataset.cache, name)
        num_rows, vocab_size = num_vocabulary_rows(self._base), dataset.cache.identity.vocab_size
        if num_rows < min(vocab_size, dataset.num_vocabulary_rows or vocab_size):
            raise IdsBeyondStudentError(name, num_rows, vocab_size)
        check_tokenizer(Path(name), dataset.cache)

    def _loader(self, dataset: CacheDataset) -> DataLoader[Any]:
        args = self.args
        return DataLoader(
            dataset,
            batch_size=None,
            num_workers=args.dataloader_num_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            pin_memory=args.dataloader_pin_memory,
            generator=torch.Generator(),  # of its own, or a resumed run would draw one number more than the first
        )


class _PlaceInCache(TrainerCallback):  # type: ignore[misc]
    """Keeps the dataset's state in the Trainer's state, and so in checkpoints."""

    def __init__(self, dataset: CacheDataset) -> None:
        self._dataset, self._num_batches = dataset, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Let a resumed run read on where the checkpoint was saved; raise CheckpointError if it does not say where."""
        self._num_batches = 0
        if state.global_step:
            if _STATE_KEY not in state.stateful_callbacks:
                raise CheckpointError(args.output_dir, "trainer_state.json states no place in the cache")
            self._dataset.load_state_dict(state.stateful_callbacks[_STATE_KEY])

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note the state after this step."""
        self._num_batches += args.gradient_accumulation_steps
        place = self._dataset.state_after(self._num_batches)
        state.stateful_callbacks[_STATE_KEY] = place
        state.epoch = place["epoch"] + place["position"] / self._dataset.num_rows


def _require_all_shares(dataset: CacheDataset, args: TrainingArguments) -> None:
    """Raise LostSharesError when rows are shared among more processes than average their gradients."""
    _, num_shares = dataset.reader()
    if num_shares > args.world_size:
        raise LostSharesError(num_shares, args.world_size)


def _set_steps(args: TrainingArguments, dataset: CacheDataset) -> None:
    """Count the steps of num_train_epochs, unless max_steps is given; raise ConfigError for a dataset that ends."""
    try:
        num_batches = len(dataset)
    except TypeError:
        pass
    else:
        raise ConfigError(
            f"train_dataset ends after {num_batches} batches; leave its num_epochs out, and give num_train_epochs or "
            "max_steps to TrainingArguments"
        )
    if args.max_steps <= 0:
        rows_per_step = dataset.batch_rows * args.gradient_accumulation_steps
        args.max_steps = math.ceil(args.num_train_epochs * dataset.num_rows / rows_per_step)


def _name_of(model: Any) -> str:
    return str(model.name_or_path or type(model).__name__)


def _let_forward_run(model: Any) -> None:
    """Let model(teachonce_run=run) return run(), inside of all that wraps its forward pass."""
    forward: Callable[..., Any] = model.forward

    @functools.wraps(forward)
    def run_or_forward(*arguments: Any, **settings: Any) -> Any:
        run = settings.pop(_RUN, None)
        return forward(*arguments, **settings) if run is None else run()

    model.forward = run_or_forward
