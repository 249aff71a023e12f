"""Chat templates in the manner of public ones, and a conversation."""

from __future__ import annotations

from typing import Any

from pipeline.corpus.chats.template import ChatTemplate

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED_WITH_HEADER = MARKED.replace("<|im_start|>{{ m['role'] }}\n{% if", "{% if").replace(
    "{% generation %}", "{% generation %}<|im_start|>assistant\n"
).replace("{% else %}", "{% else %}<|im_start|>{{ m['role'] }}\n")  # fmt: skip
# As Mistral's: roles must alternate, the system's text goes into the first question.
STRICT = (
    "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/...') }}{% endif %}"
    "{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
# As Qwen3's: only the last answer keeps its reasoning.
FORGETFUL = (
    "{% for m in messages %}<{{ m['role'] }}>{% if m['role'] == 'assistant' and loop.last %}<think></think>{% endif %}"
    "{{ m['content'] }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
FORGETFUL_AND_MARKED = FORGETFUL.replace(
    "{{ m['content'] }}</s>",
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}</s>{% endgeneration %}"
    "{% else %}{{ m['content'] }}</s>{% endif %}",
)
DATED = "Today is {{ strftime_now('%d %b %Y') }}.\n" + CHATML

CONVERSATION = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Who taught you?"},
    {"role": "assistant", "content": "A teacher did."},
    {"role": "user", "content": "Once?"},
    {"role": "assistant", "content": "Once."},
]


def compiled(text: str, **changes: Any) -> ChatTemplate:
    settings: dict[str, Any] = {"special_tokens": {"bos_token": "<s>", "eos_token": "</s>"}, "chat_date": "2026-03-01"}
    return ChatTemplate(text, "--chat-template x.jinja", **(settings | changes))
