"""Errors of the student side.

```
TeachonceError
└── StudentError
    ├── UnknownPresetError        no preset, config file or checkpoint of that name
    ├── VocabularyMismatchError   the student has fewer rows than the tokenizer has tokens
    ├── MissingRowError           a text holds a token for which the student has no row
    ├── TokenizerMismatchError    an id is one token to the student and another in the cache
    ├── ArchitectureError         a model that the losses cannot call, or whose packed documents see each other
    ├── StudentContextError       a row longer than the student's context
    ├── TemperatureError          a temperature that the cache cannot serve
    ├── RunMismatchError          a rerun differs from the run that it would resume
    ├── PresetChangedError        a rerun's preset has other content than that of the run that it would resume
    ├── ForeignFileError          something that is not a run's has a name that the run needs
    ├── CheckpointError           a checkpoint that cannot be read, or is not a run's
    ├── LauncherError             one of several processes that cannot meet the others
    ├── ProcessMismatchError      a process has other settings or files than the first
    ├── DivergedError             a run whose losses are no longer finite
    ├── LostProcessError          another process of the run has ended
    ├── StudentMemoryError        a step that does not fit into the device's memory
    ├── NoSuchStudentError        no trained student in that directory
    ├── CandidatesError           a candidates file without two texts to choose from
    ├── PromptError               a prompt that is not Unicode text
    ├── ChatPromptError           a prompt that no chat template renders
    ├── IdBeyondVocabularyError   a text with a token that the student has no row for
    ├── BrokenStudentError        a student whose logits are not finite
    ├── NotExportableError        a student that the export format cannot express
    ├── NoHeldOutRowsError        a cache without rows to measure a student on
    ├── HeldOutTextError          no text to compare an exported file on
    ├── DisagreementError         an exported file that does not compute what the student computes
    ├── OtherTokensError          an exported file whose tokenizer cuts text otherwise than the student's
    └── RuntimeFailedError        the library that runs an exported file ended without an answer
```
"""

from storage.errors import TeachonceError


class StudentError(TeachonceError):
    """An error about a student or its run."""


class UnknownPresetError(StudentError):
    """No preset, config file or checkpoint of that name."""

    def __init__(self, preset: str, presets: list[str], reason: str = "") -> None:
        self.preset = preset
        found = f" ({reason})" if reason else ""
        super().__init__(
            f"--preset {preset}: unknown{found}; expected one of {', '.join(presets)}, "
            "a config .json, or a checkpoint directory"
        )


class VocabularyMismatchError(StudentError):
    """The student's vocabulary has fewer rows than the cache's tokens need."""

    def __init__(self, student: str, student_vocab_size: int, cache_vocab_size: int) -> None:
        self.student_vocab_size, self.cache_vocab_size = student_vocab_size, cache_vocab_size
        super().__init__(
            f"{student}: its vocabulary has {student_vocab_size} entries, the cache's {cache_vocab_size}; "
            "start from a student with the teacher's tokenizer; a config .json may leave vocab_size out"
        )


class MissingRowError(StudentError):
    """A text holds a token id for which the student's vocabulary of num_rows has no row."""

    def __init__(self, token_id: int, num_rows: int) -> None:
        self.token_id, self.num_rows = token_id, num_rows
        super().__init__(
            f"a text holds token id {token_id}, the student's vocabulary has {num_rows} rows; "
            f"use a student with more than {token_id}, or a cache of other text"
        )


class TokenizerMismatchError(StudentError):
    """An id is one token to the student's tokenizer and another to the cache's."""

    def __init__(self, student: str, token_id: int, token: str, cached_token: str) -> None:
        self.token_id, self.token, self.cached_token = token_id, token, cached_token
        super().__init__(
            f"{student}: its tokenizer is not the cache's: id {token_id} is {token!r}, in the cache {cached_token!r}; "
            "use a cache of the tokenizer that the student was trained with"
        )


class ArchitectureError(StudentError):
    """A model whose body and head the losses cannot call separately, or whose packed documents see each other."""

    def __init__(self, student: str, problem: str) -> None:
        self.problem = problem
        super().__init__(f"{student}: this architecture {problem}; use one of those in docs/models.md")


class StudentContextError(StudentError):
    """A row longer than the student's context."""

    def __init__(self, student: str, context_length: int, needed: int, what: str) -> None:
        self.context_length, self.needed = context_length, needed
        super().__init__(
            f"{student}: its context holds {context_length} tokens, {what} need {needed}; "
            "use a student with a longer context, or shorter text"
        )


class TemperatureError(StudentError):
    """A temperature that the cache cannot serve."""

    def __init__(self, temperature: float, loss: str, served: list[float]) -> None:
        self.temperature, self.served = temperature, served
        super().__init__(
            f"--temperature {temperature:g} with --loss {loss}: this cache serves "
            f"{', '.join(f'{t:g}' for t in served)}; precompute with --soft-targets.temperatures {temperature:g}"
        )


class RunMismatchError(StudentError):
    """A rerun differs, in `field`, from the run that it would resume."""

    def __init__(self, out: str, field: str, found: object, wanted: object) -> None:
        self.field, self.found, self.wanted = field, found, wanted
        super().__init__(
            f"--out {out}: holds a run with {field} = {found!r}, this one has {wanted!r}; "
            "use another --out, or the settings that the run was begun with"
        )


class PresetChangedError(StudentError):
    """A rerun's preset has other content than the preset of the run that it would resume."""

    def __init__(self, out: str, begun: str, preset: str) -> None:
        self.begun, self.preset = begun, preset
        super().__init__(
            f"--out {out}: holds a run of another student: what --preset {begun} held then is not what "
            f"{preset} holds now; use another --out, or a preset as the run was begun with"
        )


class ForeignFileError(StudentError):
    """Something that is not a run's has a name that the run needs, and would be lost or end the run."""

    def __init__(self, path: str, problem: str) -> None:
        self.path, self.problem = path, problem
        super().__init__(f"{path}: {problem}, but training writes here; move it away, or name another --out")


class LauncherError(StudentError):
    """A launcher started several processes, and this one does not know how to meet the others, or cannot."""

    def __init__(self, problem: str) -> None:
        self.problem = problem
        super().__init__(
            f"{problem}; to train one student in several processes, start them by torchrun or set RANK, WORLD_SIZE, "
            "MASTER_ADDR and MASTER_PORT in each; to train one in each, set WORLD_SIZE=1"
        )


class ProcessMismatchError(StudentError):
    """Process `rank` of a run has another value of `field` than the first process."""

    def __init__(self, rank: int, field: str, found: object, wanted: object) -> None:
        self.rank, self.field, self.found, self.wanted = rank, field, found, wanted
        super().__init__(
            f"process {rank}: has {field} = {found!r}, the first process has {wanted!r}; "
            "give all processes the same settings and files"
        )


class CheckpointError(StudentError):
    """A checkpoint that cannot be read, or is not a run's."""

    def __init__(self, path: str, reason: str) -> None:
        self.path = path
        super().__init__(
            f"{path}: damaged checkpoint ({reason}); delete it to start the run again, "
            "or name another --out if another program wrote it"
        )


class DivergedError(StudentError):
    """Losses, gradients or held-out figures of a run are not finite after `step` steps."""

    def __init__(self, out: str, step: int, learning_rate: float) -> None:
        self.step = step
        super().__init__(
            f"--out {out}: diverged: after step {step} the losses are not finite, and more steps do not mend that; "
            f"train in another --out with a --learning-rate below {learning_rate:g}"
        )


class LostProcessError(StudentError):
    """Another process of the run has ended, and this process cannot continue alone."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        super().__init__(
            f"process {rank}: another process of this run has ended; its last checkpoint is whole: "
            "start the run again, with as many processes as you like"
        )


class StudentMemoryError(StudentError):
    """A step that does not fit into the memory of process `rank`, after `num_steps` steps that did."""

    def __init__(self, micro_batches: int, num_steps: int, rank: int, problem: str) -> None:
        self.micro_batches, self.num_steps, self.rank = micro_batches, num_steps, rank
        super().__init__(
            f"--micro-batches {micro_batches}: process {rank} ran out of memory after {num_steps} steps: {problem}; "
            "--gradient-checkpointing, and --parallelism fsdp in more processes, take less"
        )


class NoSuchStudentError(StudentError):
    """No trained student in that directory."""

    def __init__(self, path: str, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(
            f"{path}: no student can be loaded ({reason}); give one that teachonce-student train or teachonce-cut wrote"
        )


class CandidatesError(StudentError):
    """A candidates file without two texts to choose from."""

    def __init__(self, path: str, found: str) -> None:
        self.path, self.found = path, found
        super().__init__(f"{path}: {found}; expected at least 2 candidates, one a line, as UTF-8 text")


class PromptError(StudentError):
    """A prompt that is not Unicode text: the character at index `place` is half of a surrogate pair."""

    def __init__(self, place: int) -> None:
        self.place = place
        super().__init__(f"the prompt's character {place} is no Unicode character; give the prompt as UTF-8")


class ChatPromptError(StudentError):
    """No chat template renders the prompt of `student`."""

    def __init__(self, student: str, reason: str) -> None:
        self.student = student
        super().__init__(
            f"{student}: --chat: {reason}; expected a chat template that takes a user's message: leave out --chat, or "
            "train on a cache of conversations"
        )


class IdBeyondVocabularyError(StudentError):
    """A text holds a token whose id is beyond the rows of the student's vocabulary."""

    def __init__(self, student: str, token: str, token_id: int, vocab_size: int) -> None:
        self.token, self.token_id, self.vocab_size = token, token_id, vocab_size
        super().__init__(
            f"{student}: the text holds {token!r}, id {token_id} to its tokenizer, and the student has rows for ids "
            f"below {vocab_size}; leave that token out of the text"
        )


class BrokenStudentError(StudentError):
    """A student whose logits are not finite."""

    def __init__(self, student: str) -> None:
        super().__init__(
            f"{student}: its logits are not finite; train one in another --out, with a lower --learning-rate"
        )


class NotExportableError(StudentError):
    """A student that the export format cannot express."""

    def __init__(self, student: str, format: str, problem: str) -> None:
        self.format, self.problem = format, problem
        super().__init__(f"{student}: cannot be exported as {format}: it {problem}")


class NoHeldOutRowsError(StudentError):
    """A cache without rows to measure a student on."""

    def __init__(self, path: str) -> None:
        self.path = path
        super().__init__(
            f"{path}: its validation split holds no rows to measure a student on; "
            "precompute from more text, or with a larger --validation-fraction"
        )


class HeldOutTextError(StudentError):
    """A file or cache without text to compare the exported file on."""

    def __init__(self, path: str, problem: str) -> None:
        self.path, self.problem = path, problem
        super().__init__(f"{path}: no held-out text ({problem}); name other text with --text, or a cache with --cache")


class DisagreementError(StudentError):
    """An exported file does not compute what the student computes, and was removed."""

    def __init__(self, out: str, kl_nats: float, tolerance_nats: float) -> None:
        self.kl_nats, self.tolerance_nats = kl_nats, tolerance_nats
        super().__init__(
            f"{out}: not kept: run by its own runtime it is {kl_nats:.3g} nats/token (KL) from the student, "
            f"allowed are {tolerance_nats:g}; export without --quantize, or report a bug if that is what you did"
        )


class OtherTokensError(StudentError):
    """An exported file whose tokenizer cuts text otherwise than the student's, and which was removed."""

    def __init__(self, out: str, expected: str, found: str) -> None:
        self.expected, self.found = expected, found
        super().__init__(
            f"{out}: not kept: its runtime cuts held-out text into {found!r} where the student's tokenizer gives "
            f"{expected!r}; export it as safetensors, and report this"
        )


class RuntimeFailedError(StudentError):
    """The library that runs an exported file ended without an answer."""

    def __init__(self, path: str, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(f"{path}: its runtime fails ({reason}); the file was not kept")
