"""Errors of the teacher side.

```
TeachonceError
├── DataError
│   ├── NoSuchDataError        there is no readable data at the path or hub id
│   ├── NoSampleError          a sample of the data would say nothing of the whole
│   ├── JsonRowError           a line of a JSON file is not an object
│   ├── ColumnError            rows lack the named column, or its values cannot be used
│   ├── ChatTemplateError      there is no chat template, or it cannot be used
│   ├── RefusedChatError       a chat template cannot render a conversation, or nobody can say what the assistant said
│   ├── BadRowError            a row holds no conversation, or no pair, that can be used
│   ├── NoUsableTextError      the text to train on is shorter than one block
│   ├── NoWantedTargetError    the teacher should teach no token of the training split
│   └── NoPromptsError         there is no prompt for samples or beams
├── CutTakenError              something else lies where a cut is to be written
├── WorkerError                a worker in another process, perhaps on another host, failed
└── TeacherError
    ├── NoSuchTeacherError     transformers cannot load the teacher
    ├── TokenBeyondVocabularyError a text holds a token that the teacher has no row for
    ├── ContextTooShortError   a block or prompt is longer than the teacher can read
    ├── UnknownHeadError       the teacher's logits do not follow from its hidden states
    ├── LeakingTeacherError    the teacher is not causal, so nothing keeps documents apart
    ├── TeacherMemoryError     one row does not fit into memory
    ├── TeacherOutputError     the teacher's logits contain NaN or +infinity, or no token is possible
    ├── UncuttableTeacherError no smaller model can be cut out of the teacher so
    ├── NoSuchLayerError       the teacher has no such layer
    └── ForeignTokenizerError  the ids of a cache are other tokens to the teacher
```
"""

import math

from storage.errors import TeachonceError


class DataError(TeachonceError):
    """The data cannot be used."""


class NoSuchDataError(DataError):
    """There is no readable data at `source`."""

    def __init__(self, source: str, reason: str) -> None:
        self.source = source
        super().__init__(
            f"--data {source}: {reason}; expected stdlib, a .txt, .jsonl, .parquet or .arrow "
            "file (.gz and .zst too), a directory of them, or a Hugging Face dataset id"
        )


class NoSampleError(DataError):
    """A sample of `source` would say nothing of the whole."""

    def __init__(self, source: str, reason: str) -> None:
        self.source = source
        super().__init__(
            f"--data {source}: {reason}, so no sample tells its size; say --plan exact, which reads all of it"
        )


class JsonRowError(DataError):
    """The content at `place` of a JSON file, such as "line 3", is not a row."""

    def __init__(self, source: str, place: str, found: str) -> None:
        self.source, self.place, self.found = source, place, found
        super().__init__(
            f"--data {source}: {place} {found}; expected objects, one a line, or one array of them: mend it, or take "
            "it out"
        )


class ColumnError(DataError):
    """Rows of `source` lack `column`, or its values cannot be used."""

    def __init__(self, source: str, column: str, found: str, flag: str) -> None:
        self.source, self.column = source, column
        super().__init__(f"--data {source}: column {column!r}: {found}; name the right one with {flag}")


class ChatTemplateError(DataError):
    """There is no chat template at `name`, or it cannot be used for any row."""

    def __init__(self, name: str, reason: str) -> None:
        self.name, self.reason = name, reason
        super().__init__(f"{name}: {reason}; expected one Jinja template: give it with --chat-template FILE")


class RefusedChatError(DataError):
    """The chat template cannot render a conversation, or nobody can say what the assistant said in it."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class BadRowError(DataError):
    """The row at `place`, which names source, row and column, cannot be used."""

    def __init__(self, place: str, reason: str) -> None:
        self.place, self.reason = place, reason
        super().__init__(f"--data {place}: {reason}; mend the row, take it out, or give --on-bad-row skip")


class NoUsableTextError(DataError):
    """The train split is shorter than one block. num_tokens: tokens of each split."""

    def __init__(
        self, source: str, num_documents: int, num_skipped: int, num_tokens: dict[str, int], block_tokens: int
    ) -> None:
        self.num_tokens = num_tokens
        held_out = num_tokens["validation"]
        beside = f", beside {held_out} held out" if held_out else ""
        less = " or --validation-fraction" if held_out else ""
        super().__init__(
            f"--data {source}: no usable text: {num_documents} documents leave {num_tokens['train']} tokens to train on"
            f"{beside} ({num_skipped} documents skipped as shorter than 2 tokens), fewer than one block of "
            f"{block_tokens}; give more text, or a smaller --block-size{less}"
        )


class NoWantedTargetError(DataError):
    """None of the num_tokens tokens of the train split is one that the teacher should teach."""

    def __init__(self, source: str, num_tokens: int) -> None:
        self.num_tokens = num_tokens
        super().__init__(
            f"--data {source}: nothing to teach: of {num_tokens} tokens to train on, none is of an assistant or of a "
            "completion; give text that has some"
        )


class NoPromptsError(DataError):
    """The train split has no prompt for `kind`, whose rows continue prompts."""

    def __init__(self, source: str, kind: str, prompt_tokens: int, prompt_column: str | None, num_skipped: int) -> None:
        self.kind = kind
        if prompt_column is None:
            why = f"no piece of a document in a training block is longer than --{kind}.prompt-tokens {prompt_tokens}"
            remedy = f"make that smaller, or leave {kind} out of --kinds"
        else:
            why = (
                f"column {prompt_column!r} gives the training split none "
                f"({num_skipped} prompts skipped as empty or too long for the context)"
            )
            remedy = f"name another with --{kind}.prompt-column, or leave {kind} out of --kinds"
        super().__init__(f"--data {source}: no prompt for {kind}: {why}; {remedy}")


class WorkerError(TeachonceError):
    """A worker of --engine ray on `host` failed, and starting it again would not help."""

    def __init__(self, host: str, reason: str) -> None:
        self.host = host
        super().__init__(f"worker on {host}: {reason}")


class TeacherError(TeachonceError):
    """The teacher cannot be used."""


class NoSuchTeacherError(TeacherError):
    """transformers cannot load `teacher`."""

    def __init__(self, teacher: str, reason: str) -> None:
        self.teacher = teacher
        super().__init__(f"teacher {teacher}: cannot be loaded ({reason}); give a directory or hub id of a causal LM")


class TokenBeyondVocabularyError(TeacherError):
    """The text at `place` holds a token whose id is beyond the rows of the teacher's vocabulary."""

    def __init__(self, teacher: str, token: str, token_id: int, vocab_size: int, place: str) -> None:
        self.token, self.token_id, self.vocab_size, self.place = token, token_id, vocab_size, place
        super().__init__(
            f"teacher {teacher}: {place} holds {token!r}, id {token_id} to the tokenizer, and the model has rows for "
            f"ids below {vocab_size}; take the model's own tokenizer, or that token out of the text"
        )


class ContextTooShortError(TeacherError):
    """`setting` needs `wanted` tokens, more than the teacher's context_length."""

    def __init__(self, setting: str, wanted: int, context_length: int) -> None:
        self.setting, self.wanted, self.context_length = setting, wanted, context_length
        super().__init__(
            f"{setting} needs {wanted} tokens, the teacher's context holds {context_length}; make it smaller"
        )


class UnknownHeadError(TeacherError):
    """Neither a formula nor the model's own code gives the teacher's logits from its hidden states."""

    def __init__(self, teacher: str) -> None:
        super().__init__(
            f"teacher {teacher}: its logits do not follow from the last hidden states of its body; this architecture "
            "cannot be read, use another teacher"
        )


class LeakingTeacherError(TeacherError):
    """A token's hidden state depends on tokens after it, or on other rows of a pass."""

    def __init__(self, teacher: str) -> None:
        super().__init__(
            f"teacher {teacher}: its hidden states change with later tokens, or with other texts beside it; expected "
            "a causal language model, and no model of masked or whole texts; give another --teacher"
        )


class TeacherOutputError(TeacherError):
    """The teacher's logits for a row are no distribution, or make a token of the text impossible.

    `largest` is the largest logit of a position: NaN if one is NaN, infinity if one is, −infinity if all are. A finite
    one means that the token that follows has logit −infinity.
    """

    def __init__(self, kind: str, split: str, row_id: int, largest: float) -> None:
        self.kind, self.split, self.row_id, self.largest = kind, split, row_id, largest
        if math.isfinite(largest):
            found = "give a token of the text probability 0"
            advice = "leave that text out"
        else:
            found = {math.inf: "contain +infinity", -math.inf: "are all -infinity"}.get(largest, "contain NaN")
            advice = "look for NaN or infinity in its weights, or try --dtype float32"
        super().__init__(f"{kind}, {split} split, row {row_id}: the teacher's logits {found}; {advice}")


class UnusableLogitsError(TeacherError):
    """The logits of the text with this index among those that are being written are no distribution.

    Its kind, split and row are known to the caller, which raises TeacherOutputError. largest: as there.
    """

    def __init__(self, index: int, largest: float) -> None:
        self.index, self.largest = index, largest
        super().__init__(f"text {index}: the largest logit is {largest}")


class TeacherMemoryError(TeacherError):
    """A pass over one row does not fit into memory."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"out of memory with a single row in a pass ({reason.splitlines()[0]}); expected room for one; "
            "use a smaller --block-size or --device with more memory"
        )


class UncuttableTeacherError(TeacherError):
    """No smaller model can be cut out of the teacher so."""

    def __init__(self, reason: str, advice: str = "keep others or all of its layers, or begin from a preset") -> None:
        self.reason = reason
        super().__init__(f"this teacher cannot be cut so: {reason}; {advice}")


class NoSuchLayerError(TeacherError):
    """--layers asks for layers that the teacher does not have."""

    def __init__(self, layers: str, num_layers: int) -> None:
        self.layers, self.num_layers = layers, num_layers
        super().__init__(
            f"--layers {layers}: the teacher has {num_layers} layers, 0 to {num_layers - 1}; ask for some of these"
        )


class ForeignTokenizerError(TeacherError):
    """`token_id` is `token` in the cache at `where`, and `found` to the teacher; None: it has no such id."""

    def __init__(self, where: str, token_id: int, token: str, found: str | None) -> None:
        self.where, self.token_id, self.token, self.found = where, token_id, token, found
        other = "none" if found is None else repr(found)
        super().__init__(
            f"--cache {where}: its id {token_id} is {token!r}, and {other} to the teacher; give a cache with the "
            "teacher's tokenizer, or a text with --data"
        )


class CutTakenError(TeachonceError):
    """Something else than this cut lies at --out."""

    def __init__(self, out: str, found: str) -> None:
        self.out, self.found = out, found
        super().__init__(f"--out {out}: {found}; remove it, or name another place")
