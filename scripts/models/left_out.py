"""Model types that transformers counts among the causal ones and that are tried as neither teacher nor student."""

from __future__ import annotations

_ENCODER = "an encoder that can be told to be a decoder"
_HALF = "the decoder of an encoder-decoder model"
_WRAPPER = "reads images or sound too; its text part is an entry of its own"
_DRAFTER = "drafts for another model, whose hidden states it needs"

LEFT_OUT: dict[str, str] = {
    **dict.fromkeys(
        (
            "bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert",
            "reformer", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm", "xlm-roberta",
            "xlm-roberta-xl", "xmod",
        ),
        _ENCODER,
    ),
    **dict.fromkeys(
        (
            "bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian", "mbart", "mvp", "pegasus", "plbart",
            "prophetnet", "trocr", "whisper",
        ),
        _HALF,
    ),
    **dict.fromkeys(("dots3_note", "gemma3n"), _WRAPPER),
    **dict.fromkeys(("gemma4_assistant", "gemma4_unified_assistant"), _DRAFTER),
    **dict.fromkeys(
        ("emu3", "fuyu", "git", "got_ocr2", "mllama", "moshi", "moss_transcribe_diarize", "phi4_multimodal"),
        "reads images or sound too",
    ),
    **dict.fromkeys(("musicgen", "musicgen_melody"), "writes sound"),
    "xlnet": "reads texts in both directions",
}  # fmt: skip
"""Why, by model type."""
