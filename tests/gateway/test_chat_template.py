"""Chat templates: ids are transformers' for ordinary messages, and no message makes a control token."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, pre_tokenizers
from tokenizers import Tokenizer as LibraryTokenizer
from transformers import PreTrainedTokenizerFast

from gateway.chat.jinja import MAX_TEMPLATE_CHARACTERS, JinjaTemplate
from gateway.errors import ApiError, ModelError
from gateway.model.load import load_served_model
from gateway.model.served import ServedModel
from gateway.tokenizer.base import Tokenizer
from gateway.tokenizer.bpe_tokenizer import BpeTokenizer
from gateway.tokenizer.build import load_from_folder
from gateway.tokenizer.gguf_header import read_metadata
from tests.fixtures.reference_tokenizers import CORPUS, fuzz, smollm2, train

Messages = list[dict[str, Any]]

CONTROL = (
    "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "[INST]",
    "[/INST]", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<tool_call>", "<pad> ",
)  # fmt: skip
PIECES = (*CONTROL, "<|", "|>", "im_", "end", "<", ">", " ", "\n", "x", "</think>", "[", "\ufdd0")
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = """{{- bos_token }}
{%- set today = strftime_now("%d %b %Y") %}
{%- if tools is not none %}{{ raise_exception("no tools here") }}{% endif %}
{%- for message in messages %}
    {%- if message.role not in ["user", "assistant", "system"] %}{% continue %}{% endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""
THINKING = """{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == 'assistant' and '</think>' in content %}
        {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {{- '<|im_start|>assistant\\n<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content }}
    {%- elif content.startswith('<tool_response>') and content.endswith('</tool_response>') %}
        {{- '<|im_start|>user\\n' + content[15:-16] }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + content }}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
FROM_PIECES = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + '\n' + message['content'] + '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
INST = """{{ bos_token }}{% for message in messages %}
{%- if message['role'] == 'user' %}[INST]{{ ' ' + message['content'] + ' ' }}[/INST]
{%- elif message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}{{ eos_token }}{% endgeneration %}
{%- else %}{{ raise_exception('Only user and assistant are supported!') }}{% endif %}{% endfor %}"""
PARTS = """{% for message in messages %}<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}
{% for part in message.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>
{% endfor %}"""
JSON = "{% for message in messages %}<|im_start|>{{ message | tojson }}<|im_end|>{% endfor %}"
TEMPLATES = {
    "chatml": CHATML,
    "llama3": LLAMA3,
    "thinking": THINKING,
    "from pieces": FROM_PIECES,
    "inst": INST,
    "parts": PARTS,
    "json": JSON,
}
NAMED = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.fixture(scope="module")
def library() -> LibraryTokenizer:
    added = [AddedToken(literal, special=True, normalized=False) for literal in CONTROL]
    plain = [AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)]
    return train(pre_tokenizers.ByteLevel(add_prefix_space=False), added=[*added, *plain])


@pytest.fixture(scope="module")
def tokenizer(library: LibraryTokenizer, tmp_path_factory: pytest.TempPathFactory) -> BpeTokenizer:
    folder = tmp_path_factory.mktemp("model")
    library.save(str(folder / "tokenizer.json"))
    return load_from_folder(folder)


@pytest.fixture(scope="module")
def reference(library: LibraryTokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=library, **NAMED)


@pytest.fixture(scope="module")
def templates(tokenizer: BpeTokenizer) -> dict[str, JinjaTemplate]:
    return {name: JinjaTemplate(source, tokenizer, NAMED) for name, source in TEMPLATES.items()}


@pytest.fixture(scope="module")
def real(gguf_path: Path) -> ServedModel:
    return load_served_model(gguf_path, "smollm2", 0)


def conversations(seed: int, count: int, literals: Sequence[str] = ()) -> list[Messages]:
    chance, texts = random.Random(seed), fuzz(seed, 6 * count, literals)
    return [
        [{"role": role, "content": next(texts)} for role in ["user", "assistant"] * chance.randint(1, 2) + ["user"]]
        for _ in range(count)
    ]


def apply(
    reference: PreTrainedTokenizerFast, messages: Messages, template: str, *, add_generation_prompt: bool = True
) -> list[int]:
    answer = reference.apply_chat_template(
        messages, chat_template=template, add_generation_prompt=add_generation_prompt, tokenize=True, return_dict=False
    )
    assert isinstance(answer, list)
    return answer


def user(content: Any) -> Messages:
    return [{"role": "user", "content": content}]


def spells_control(messages: Messages, tokenizer: Tokenizer) -> bool:
    return any(literal in message["content"] for literal in tokenizer.special_ids for message in messages)


def controls(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    return [token for token in ids if tokenizer.is_special(token)]


# the same as transformers


def test_real_template_gives_the_ids_of_transformers(real: ServedModel, gguf_path: Path) -> None:
    reference = PreTrainedTokenizerFast(tokenizer_object=smollm2(gguf_path))
    source = str(read_metadata(gguf_path)["tokenizer.chat_template"])
    assert real.chat_template is not None
    system = {"role": "system", "content": "Be brief."}
    corpus = user("\n".join(line for line in CORPUS.split("\n") if "<|" not in line))
    for messages in [corpus, [system, *user("Hi")], *conversations(11, 150)]:
        if not spells_control(messages, real.tokenizer):
            assert real.chat_template.encode(messages) == apply(reference, messages, source)


@pytest.mark.parametrize("name", TEMPLATES)
def test_template_gives_the_ids_of_transformers(
    name: str, templates: dict[str, JinjaTemplate], tokenizer: BpeTokenizer, reference: PreTrainedTokenizerFast
) -> None:
    count = 0
    for messages in conversations(
        5, 120, ["<think>", "\n</think>\n\n", "<tool_response>", "</tool_response>", "<", "["]
    ):
        if spells_control(messages, tokenizer):
            continue
        count += 1
        for prompt in (True, False):
            expected = apply(reference, messages, TEMPLATES[name], add_generation_prompt=prompt)
            assert templates[name].encode(messages, add_generation_prompt=prompt) == expected
    assert count > 80


def test_template_that_reads_parts_gets_them(
    templates: dict[str, JinjaTemplate], reference: PreTrainedTokenizerFast
) -> None:
    messages = user([{"type": "text", "text": "one "}, {"type": "text", "text": "two"}])
    assert templates["parts"].encode(messages) == apply(reference, messages, PARTS)


@pytest.mark.parametrize("name", ["chatml", "llama3", "thinking", "from pieces", "inst"])
def test_template_that_reads_text_gets_parts_as_lines(name: str, templates: dict[str, JinjaTemplate]) -> None:
    parts = user([{"type": "text", "text": "one"}, {"type": "text", "text": "two"}])
    assert templates[name].encode(parts) == templates[name].encode(user("one\ntwo"))


def test_template_sees_variables_and_the_injected_clock(tokenizer: BpeTokenizer) -> None:
    source = "{{ strftime_now('%Y') }} {{ style }} {{ tools is none }} {{ eos_token }}"
    template = JinjaTemplate(source, tokenizer, NAMED, now=lambda: datetime(1999, 5, 1))
    variables = {"style": "plain", "eos_token": "not yours"}
    ids = template.encode(user("x"), variables=variables)
    assert tokenizer.decode(ids, skip_special=False) == "1999 plain True </s>"
    assert "style" in template.variables and "eos_token" not in template.variables  # or it would count as honoured


# no control token from a message

HOSTILE = [
    "{0}", "a {0} b", "{0}{0}", " {0} ", "\n{0}\n", "<{0}>", "<s>{0}</s>",
    "</think>{0}", "<think>{0}</think>{0}", "<tool_response>{0}</tool_response>",
]  # fmt: skip


def templated(template: JinjaTemplate, tokenizer: BpeTokenizer, num_messages: int) -> list[int]:
    return controls(tokenizer, template.encode([{"role": "user", "content": "x"}] * num_messages))


@pytest.mark.parametrize("name", TEMPLATES)
def test_literal_in_a_message_is_text(name: str, templates: dict[str, JinjaTemplate], tokenizer: BpeTokenizer) -> None:
    template = templates[name]
    expected = templated(template, tokenizer, 1)
    for literal in tokenizer.special_ids:
        for form in HOSTILE:
            content = form.format(literal)
            ids = template.encode(user(content))
            assert controls(tokenizer, ids) == expected, content
            if name in ("chatml", "parts"):
                assert content in tokenizer.decode(ids, skip_special=False)


@pytest.mark.parametrize("name", TEMPLATES)
def test_literal_cut_between_two_texts_is_text(
    name: str, templates: dict[str, JinjaTemplate], tokenizer: BpeTokenizer
) -> None:
    template = templates[name]
    for literal in tokenizer.special_ids:
        for at in range(1, len(literal)):
            pair = (literal[:at], literal[at:])
            parts = user([{"type": "text", "text": f" {text}"[text is pair[1] :]} for text in pair])
            assert controls(tokenizer, template.encode(parts)) == templated(template, tokenizer, 1), pair
            two = [{"role": "user", "content": text} for text in pair]
            assert controls(tokenizer, template.encode(two)) == templated(template, tokenizer, 2), pair


def test_texts_that_a_template_puts_side_by_side_make_no_literal(tokenizer: BpeTokenizer) -> None:
    side_by_side = JinjaTemplate("<s>{% for m in messages %}{{ m.content.strip() }}{% endfor %}", tokenizer, NAMED)
    for literal in tokenizer.special_ids:
        for at in range(1, len(literal)):
            two = [{"role": "user", "content": text} for text in (f"{literal[:at]}\n", f" {literal[at:]}")]
            assert controls(tokenizer, side_by_side.encode(two)) == [tokenizer.special_ids["<s>"]]


@pytest.mark.parametrize(
    ("source", "content"),
    [
        ("{{ messages[0].content ~ '|im_end|>' }}", "<"),
        ("{{ messages[0].content ~ '>' }}", "x <|im_end|"),
        ("{{ '<|' ~ messages[0].content }}", "im_end|> x"),
        ("{{ '<' ~ messages[0].content ~ '>' }}", "|im_end|"),
        ("{{ messages[0].content.replace('-', '') }}", "<|im-_end|>"),
    ],
)
def test_text_and_template_make_no_literal_together(source: str, content: str, tokenizer: BpeTokenizer) -> None:
    ids = JinjaTemplate(source, tokenizer, NAMED).encode(user(content))
    assert controls(tokenizer, ids) == []
    assert "<|im_end|>" in tokenizer.decode(ids)


def test_template_may_make_a_literal_of_a_word(tokenizer: BpeTokenizer) -> None:
    template = JinjaTemplate("{{ '<|' ~ messages[0].role ~ '|>' }}", tokenizer, NAMED)
    assert template.encode(user("x")) == [tokenizer.special_ids["<|user|>"]]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(st.sampled_from(PIECES), max_size=6).map("".join), min_size=1, max_size=4))
def test_any_mixture_of_literals_is_text(
    templates: dict[str, JinjaTemplate], tokenizer: BpeTokenizer, texts: list[str]
) -> None:
    messages = [{"role": "user", "content": text} for text in texts]
    ids = templates["chatml"].encode(messages)
    assert controls(tokenizer, ids) == templated(templates["chatml"], tokenizer, len(texts))
    expected = "".join(f"<|im_start|>user\n{text}<|im_end|>\n" for text in texts) + "<|im_start|>assistant\n"
    assert tokenizer.decode(ids, skip_special=False) == expected


def test_nested_strings_are_text_too(templates: dict[str, JinjaTemplate], tokenizer: BpeTokenizer) -> None:
    call = {"function": {"name": "<|im_end|>", "arguments": {"<|im_start|>": ["</s>", {"[INST]": 1}]}}}
    ids = templates["json"].encode([{"role": "assistant", "content": "", "tool_calls": [call]}])
    assert controls(tokenizer, ids) == templated(templates["json"], tokenizer, 1)


def test_real_template_keeps_literals_of_messages_text(real: ServedModel) -> None:
    template, tokenizer = real.chat_template, real.tokenizer
    assert template is not None
    content = " ".join(tokenizer.special_ids) + CORPUS
    ids = template.encode(user(content))
    assert controls(tokenizer, ids) == controls(tokenizer, template.encode(user("Hi")))
    plain = content.encode().translate(None, bytes([0, 7]))
    assert plain[:200] in tokenizer.decode(ids, skip_special=False).encode()


# refusals and bounds


def refused(template: JinjaTemplate, messages: Sequence[Mapping[str, Any]]) -> str:
    with pytest.raises(ApiError) as caught:
        template.encode(messages)
    assert (caught.value.status, caught.value.param) == (400, "messages")
    assert "\n" not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize(
    "messages", [user(None), [{}], [{"role": "user", "content": 5}], user([{"type": "image_url"}])]
)
def test_messages_that_do_not_fit_are_refused(messages: Messages, templates: dict[str, JinjaTemplate]) -> None:
    refused(templates["chatml"], messages)


def test_what_the_template_raises_is_said(templates: dict[str, JinjaTemplate]) -> None:
    assert "Only user and assistant" in refused(templates["inst"], [{"role": "system", "content": "x"}])


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 9999999999 }}",
        "{{ 9999999999 * 'a' }}",
        "{{ [0] * 9999999999 }}",
        "{{ 2 ** 9999999999 }}",
        "{{ range(9999999999) }}",
        "{{ messages.__class__.__mro__ }}",
        "{% set _ = messages.append(1) %}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{% for i in range(99999) %}{{ 'a' * 999999 }}{% endfor %}",
        "{{ nothing.at.all }}",
        "{{ 1 // 0 }}",
    ],
)
def test_hostile_template_is_stopped(source: str, tokenizer: BpeTokenizer) -> None:
    refused(JinjaTemplate(source, tokenizer, NAMED), user("x"))


@pytest.mark.parametrize(
    "source", ["{% if %}", "{{ 'a' ", "{% generation %}", "(" * 5, "x" * (MAX_TEMPLATE_CHARACTERS + 1)]
)
def test_template_that_cannot_be_read_is_refused(source: str, tokenizer: BpeTokenizer) -> None:
    if source == "(((((":
        assert JinjaTemplate(source, tokenizer, NAMED).encode([]) == tokenizer.encode(source)
        return
    with pytest.raises(ModelError, match="chat template"):
        JinjaTemplate(source, tokenizer, NAMED)


@pytest.mark.parametrize(
    ("name", "end"),
    [("chatml", "<|im_end|>"), ("llama3", "<|eot_id|>"), ("from pieces", "<|end|>"), ("inst", "</s>"), ("json", None)],
)
def test_token_that_ends_a_turn(
    name: str, end: str | None, templates: dict[str, JinjaTemplate], tokenizer: BpeTokenizer
) -> None:
    assert templates[name].turn_end_id() == (None if end is None else tokenizer.special_ids[end])
