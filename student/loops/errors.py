"""Errors of the dataset, the losses and the Trainer for other loops.

```
StudentError
├── TemperatureError
│   └── UnservedTemperatureError  a temperature, asked for in Python, that the cache cannot serve
├── UnbatchedKindError            a kind of rows that does not fit into a plain dictionary of tensors
├── BatchShapeError               hidden states or logits whose shape is not that of the batch
├── BatchTemperatureError         a loss at another temperature than its batch was made for
├── AdapterError                  an adapter that the losses would not see
├── IdsBeyondStudentError         a dataset that does not leave out the ids that the student has no row for
└── LostSharesError               rows shared among more processes than learn together
```
"""

from student.errors import StudentError, TemperatureError


class UnservedTemperatureError(TemperatureError):
    """A temperature asked for in Python that the cache cannot serve."""

    def __init__(self, where: str, temperature: float, served: list[float]) -> None:
        self.temperature, self.served = temperature, served
        StudentError.__init__(
            self,
            f"{where}: temperature is {temperature:g}, this cache serves {', '.join(f'{t:g}' for t in served)}; "
            f"take one of these, or precompute with --soft-targets.temperatures {temperature:g}",
        )


class UnbatchedKindError(StudentError):
    """A kind whose rows do not fit into a plain dictionary of tensors."""

    def __init__(self, kind: str, offered: list[str]) -> None:
        self.kind, self.offered = kind, offered
        super().__init__(
            f"kind {kind!r}: expected one of {', '.join(offered)}; "
            "candidates of beams, several to a prompt, are read by teachonce-student train"
        )


class BatchShapeError(StudentError):
    """Hidden states or logits whose first two sizes are not those of the batch's labels."""

    def __init__(self, what: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
        self.what, self.found, self.expected = what, found, expected
        super().__init__(
            f"{what}: have the shape {list(found)}, expected {[*expected, '…']}; "
            "give what the model returns at all positions: the batch's labels are shifted already"
        )


class BatchTemperatureError(StudentError):
    """A loss at another temperature than its batch was made for."""

    def __init__(self, temperature: float, found: str) -> None:
        self.temperature = temperature
        super().__init__(
            f"temperature is {temperature:g}, the batch was made for {found}; "
            f"make it by CacheDataset(…, temperature={temperature:g})"
        )


class AdapterError(StudentError):
    """An adapter of a PEFT model that changes what the losses read or run themselves."""

    def __init__(self, student: str, problem: str) -> None:
        self.problem = problem
        super().__init__(
            f"{student}: its adapter {problem}, which the losses do not see; "
            "adapt weights of the body alone, as LoRA does without the head in target_modules and modules_to_save"
        )


class IdsBeyondStudentError(StudentError):
    """A dataset that does not leave out the ids for which the student has no row."""

    def __init__(self, student: str, num_rows: int, vocab_size: int) -> None:
        self.num_rows, self.vocab_size = num_rows, vocab_size
        super().__init__(
            f"{student}: its vocabulary has {num_rows} rows, the cache's {vocab_size}; "
            f"make the dataset by CacheDataset(…, num_vocabulary_rows={num_rows})"
        )


class LostSharesError(StudentError):
    """A dataset shares rows among more processes than average their gradients; the shares of the others are lost."""

    def __init__(self, num_shares: int, num_processes: int) -> None:
        self.num_shares, self.num_processes = num_shares, num_processes
        super().__init__(
            f"train_dataset shares rows among {num_shares} processes, of which {num_processes} learn together; without "
            "a GPU, start them with ACCELERATE_USE_CPU=true or give TrainingArguments(use_cpu=True)"
        )
