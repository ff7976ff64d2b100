"""What types cannot say of requests' fields: meaning, ranges, defaults, and the forms of what is checked by hand.

A key is a field's name in every request, or `Type.field` for one type's own. What stands beside description, default
and examples narrows the type; with `anyOf`, `enum` or `$ref` it replaces the type. TYPES is about types as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.chat_web.limits import ROLES, bounds_of
from gateway.chat_web.prepare import DECIMAL, INTEGER
from gateway.messages.routes import MAX_STOPS
from gateway.requests import conversation, convert, structured
from gateway.requests.chat_prompt import EFFORTS
from gateway.responses.convert import ENCRYPTED, LOGPROBS
from gateway.roseinfer.generate import MAX_NEW_TOKENS
from gateway.services import Services

Schema = dict[str, Any]
NULL: Schema = {"type": "null"}
ANY_OBJECT: Schema = {"type": "object"}


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def either(*forms: Schema) -> Schema:
    return {"anyOf": list(forms)}


def array(items: Schema, **bounds: int) -> Schema:
    return {"type": "array", "items": items, **bounds}


def text(description: str, **rest: Any) -> Schema:
    return {"description": description, **rest}


_TEXT: Schema = {"type": "string"}
_STOP: Schema = {"type": "string", "minLength": 1, "maxLength": convert.MAX_STOP_CHARS}
_JSON_SCHEMA = either(ANY_OBJECT, {"const": True})
_JSON_OR_TEXT = either(ANY_OBJECT, {"const": True}, _TEXT)
_CHOICES = array({"type": "string", "minLength": 1}, minItems=1, maxItems=structured.MAX_CHOICES)
_PATTERN: Schema = {"type": "string", "minLength": 1}
_FUNCTION_NAME: Schema = {"pattern": "^[A-Za-z0-9_.-]{1,64}$"}
_PROMPT = either(
    _TEXT, array(_TEXT, minItems=1), array(ref("TokenId"), minItems=1), array(array(ref("TokenId")), minItems=1)
)


def _typed(kind: str, **fields: Schema) -> Schema:
    properties = {"type": {"const": kind}, **fields}
    return {"type": "object", "properties": properties, "required": list(properties)}


_NAMED_FUNCTION = _typed("function", function={"type": "object", "properties": {"name": _TEXT}, "required": ["name"]})
_ALLOWED_TOOLS = _typed(
    "allowed_tools",
    allowed_tools={
        "type": "object",
        "properties": {"mode": {"enum": ["auto", "required"]}, "tools": array(_NAMED_FUNCTION, minItems=1)},
        "required": ["mode", "tools"],
    },
)
_MODES: Schema = {"enum": ["none", "auto", "required"]}
_NAMED_SCHEMA: Schema = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1},
        "schema": _JSON_SCHEMA,
        "strict": {"type": ["boolean", "null"]},
    },
    "required": ["name", "schema"],
}

SAMPLING: Mapping[str, Schema] = {
    "model": text("The model that is served; GET /v1/models tells it.", **ref("ModelName")),
    "max_tokens": text("Most tokens of an answer.", minimum=1),
    "CompletionRequest.max_tokens": text(
        "Most tokens of an answer; 0: the prompt is only scored.", minimum=0, default=convert.COMPLETION_MAX_TOKENS
    ),
    "top_p": text("Only the most likely tokens whose probabilities sum to this are drawn from.", minimum=0, maximum=1),
    "top_k": text("Only so many of the most likely tokens are drawn from; 0 or -1: all.", minimum=-1),
    "min_p": text(
        "Only tokens at least so likely, relative to the most likely one, are drawn from.", minimum=0, maximum=1
    ),
    "stop": text(
        f"Up to {convert.MAX_STOPS} strings, each of which ends the answer and is left out of it.",
        **either(_STOP, array(_STOP, maxItems=convert.MAX_STOPS), NULL),
    ),
    "seed": text(
        "The same seed, prompt and model draw the same noise; drawn where none is given, and told in x-headrace-seed.",
        minimum=-(1 << 63),
        maximum=(1 << 63) - 1,
    ),
    "presence_penalty": text("Taken from the logit of each token that the answer has already.", minimum=-2, maximum=2),
    "frequency_penalty": text(
        "Taken from a token's logit for each time the answer has it already.", minimum=-2, maximum=2
    ),
    "repetition_penalty": text(
        "Divides the logits of tokens that prompt or answer have already; 1: none.", minimum=0.01, maximum=10
    ),
    "logit_bias": text(
        "Added to the logits of tokens, by their ids.",
        propertyNames={"pattern": "^[0-9]{1,10}$"},
        additionalProperties={"type": "number", "minimum": -100, "maximum": 100},
        maxProperties=convert.MAX_BIASES,
    ),
    "stream": text("The answer comes as server-sent events while it is made.", default=False),
    "stream_options": text("Only with stream."),
    "StreamOptions.include_usage": text("A last chunk tells the tokens that were used.", default=False),
    "StreamOptions.continuous_usage_stats": text("With include_usage: every chunk tells them.", default=False),
    "StreamOptions.include_timings": text("A last chunk tells where the time went.", default=False),
    "include_timings": text("The answer, or a last chunk of it, tells where the time went.", default=False),
    "ignore_eos": text("The model's end tokens do not end the answer.", default=False),
    "min_tokens": text("The model's end tokens are not drawn before so many.", minimum=0, default=0),
    "stop_token_ids": text("Tokens that end the answer.", items=ref("TokenId"), maxItems=convert.MAX_STOP_IDS),
    "allowed_token_ids": text("Nothing but these tokens is drawn.", items=ref("TokenId"), minItems=1),
    "bad_words": text("Strings that the answer does not hold.", items=_STOP, maxItems=convert.MAX_BAD_WORDS),
    "prompt_logprobs": text(
        "The log-probabilities of the prompt's tokens, with so many alternatives. Not with stream.",
        minimum=0,
        maximum=convert.MAX_LOGPROBS,
    ),
    "truncate_prompt_tokens": text("Only so many tokens of the prompt are kept; -1: as many as fit.", minimum=-1),
    "truncation_side": text("Where the prompt is cut.", default="left"),
    "include_stop_str_in_output": text("The stop string stays at the end of the answer.", default=False),
    "skip_special_tokens": text("false: the text shows control tokens.", default=True),
    "return_token_ids": text("The answer tells the ids of prompt and answer.", default=False),
    "cache_salt": text(
        "Only requests with the same salt share cached prompts.", minLength=1, maxLength=convert.MAX_SALT_CHARS
    ),
    "priority": text("Lower runs sooner.", minimum=-convert.MAX_PRIORITY, maximum=convert.MAX_PRIORITY, default=0),
}

SHAPES: Mapping[str, Schema] = {
    "response_format": text(
        "The form of the answer.",
        **either(_typed("text"), _typed("json_object"), _typed("json_schema", json_schema=_NAMED_SCHEMA), NULL),
    ),
    "structured_outputs": text(
        "The form of the answer: one of json (a schema), json_object, regex, choice and grammar (Lark or GBNF).",
        properties={
            "json": either(_JSON_OR_TEXT, NULL),
            "json_object": {"type": ["boolean", "null"]},
            "regex": either(_PATTERN, NULL),
            "choice": either(_CHOICES, NULL),
            "grammar": either(_PATTERN, NULL),
        },
    ),
    "guided_json": text("As structured_outputs.json.", **either(_JSON_OR_TEXT, NULL)),
    "guided_regex": text("As structured_outputs.regex.", **either(_PATTERN, NULL)),
    "guided_choice": text("As structured_outputs.choice.", **either(_CHOICES, NULL)),
    "guided_grammar": text("As structured_outputs.grammar.", **either(_PATTERN, NULL)),
}

CHAT: Mapping[str, Schema] = {
    "messages": text("The conversation so far.", items=ref("Message"), minItems=1),
    "max_completion_tokens": text("The newer name of max_tokens, before which it goes.", minimum=1),
    "ChatRequest.logprobs": text("The answer tells the log-probability of each token.", default=False),
    "top_logprobs": text("With logprobs: so many alternatives of each token.", minimum=0, maximum=convert.MAX_LOGPROBS),
    "tools": text("Functions that the model may call.", items=ref("ToolDefinition"), maxItems=conversation.MAX_TOOLS),
    "tool_choice": text(
        "Whether the model calls, and what. Without it auto where there are tools.",
        **either(_MODES, _NAMED_FUNCTION, _ALLOWED_TOOLS, NULL),
    ),
    "parallel_tool_calls": text("More than one call in an answer.", default=True),
    "reasoning_effort": text("For templates of models that reason.", enum=[*EFFORTS, None]),
    "include_reasoning": text("false: the model's reasoning is left out of the answer.", default=True),
    "chat_template_kwargs": text("Further variables of the model's chat template."),
    "add_generation_prompt": text("The prompt ends with the head of the model's own message.", default=True),
    "continue_final_message": text("The answer goes on where the last message, the assistant's, ends.", default=False),
    "Message.role": text("Whose message it is; developer means system.", enum=list(conversation.ROLES)),
    "Message.content": text(
        "Text. May be missing where the assistant only calls tools.",
        **either(_TEXT, array(ref("TextPart"), minItems=1), NULL),
    ),
    "Message.name": text("For templates that show it."),
    "Message.tool_calls": text("The assistant's calls.", items=ref("MessageToolCall")),
    "Message.tool_call_id": text("Of a tool's message: the call that it answers."),
    "Message.function_call": text("Not built.", **either(NULL)),
    "Message.audio": text("Not built.", **either(NULL)),
    "Message.refusal": text("Of the assistant, in place of content."),
    "Message.reasoning_content": text("The assistant's reasoning, for templates that show it."),
    "Message.reasoning": text("Another name of reasoning_content."),
    "TextPart.type": text("Which of the next two it has.", enum=["text", "refusal"]),
    "TextPart.text": text("The text."),
    "TextPart.refusal": text("The refusal."),
    "MessageToolCall.id": text("Named by the message with the call's result."),
    "MessageToolCall.type": text("What is called."),
    "MessageToolCall.function": text("What was called, and with what."),
    "ToolCallFunction.name": text("Of the function."),
    "ToolCallFunction.arguments": text("JSON, as text."),
    "ToolDefinition.type": text("Custom tools are not built.", enum=["function"]),
    "ToolDefinition.function": text("The function.", **ref("FunctionDefinition")),
    "FunctionDefinition.name": text("By which it is called.", **_FUNCTION_NAME),
    "FunctionDefinition.description": text("For the model."),
    "FunctionDefinition.parameters": text("A JSON schema of the arguments."),
    "FunctionDefinition.strict": text("The arguments keep to the schema.", default=False),
}

COMPLETIONS: Mapping[str, Schema] = {
    "CompletionRequest.prompt": text("A text or its token ids, or an array of several.", **_PROMPT),
    "CompletionRequest.logprobs": text(
        "The log-probability of each token, with so many alternatives.", minimum=0, maximum=convert.MAX_LOGPROBS
    ),
    "echo": text("The answer begins with the prompt.", default=False),
    "best_of": text("So many answers are made, and the n most likely are sent.", minimum=1),
    "suffix": text("What comes after the answer, for models that fill in the middle."),
    "return_token_strs": text("Tells what each token stands for, too.", default=False),
    "add_special_tokens": text("false: no token is put before the prompt.", default=True),
}

_ANY_MODEL = text("The model that is served, or nothing.", **either(ref("ModelName"), NULL))

TOKENS: Mapping[str, Schema] = {
    "TokenizeRequest.model": _ANY_MODEL,
    "DetokenizeRequest.model": _ANY_MODEL,
    "TokenizeRequest.prompt": text("A text; either this or messages."),
    "TokenizeRequest.messages": text("A conversation; either this or prompt.", items=ref("Message"), minItems=1),
    "DetokenizeRequest.tokens": text("Token ids.", items=ref("TokenId")),
    "EmbeddingRequest.input": text("A text or its token ids, or an array of several.", **_PROMPT),
    "EmbeddingRequest.encoding_format": text("base64: of float32, little-endian.", default="float"),
    "EmbeddingRequest.dimensions": text("Only so many of the first numbers, scaled to length 1.", minimum=1),
}

_ANTHROPIC_TEXTS = array(ref("AnthropicTextInput"), minItems=1)
_ANTHROPIC_BLOCKS = either(
    *map(ref, ("AnthropicTextInput", "AnthropicThinkingInput", "AnthropicToolUseInput", "AnthropicToolResultInput")),
    _typed("redacted_thinking"),
)

ANTHROPIC: Mapping[str, Schema] = {
    "AnthropicConversation.structured_outputs": text("Without effect on the count."),
    "AnthropicMessagesRequest.max_tokens": text(
        "Most tokens of the answer; it ends sooner where the context does.", minimum=1
    ),
    "AnthropicMessagesRequest.temperature": text(
        "How far sampling strays from the most likely token; 0: not at all.", minimum=0, maximum=1
    ),
    "stop_sequences": text(
        f"Up to {MAX_STOPS} strings, each of which ends the answer.", items=_STOP, maxItems=MAX_STOPS
    ),
    "system": text("What stands before the conversation.", **either(_TEXT, array(ref("AnthropicTextInput")), NULL)),
    "thinking": text("Whether the model reasons first, for templates that can be told."),
    "output_config": text("Effort and form of the answer."),
    "output_format": text("As output_config.format."),
    "speed": text("Without effect here."),
    "mcp_servers": text("Not built.", **either(NULL, array({}, maxItems=0))),
    "container": text("Not built.", **either(NULL, array({}, maxItems=0))),
    "AnthropicInputMessage.role": text("Whose message it is."),
    "AnthropicInputMessage.content": text("Text or blocks.", **either(_TEXT, array(_ANTHROPIC_BLOCKS, minItems=1))),
    "AnthropicTextInput.text": text("The text."),
    "AnthropicThinkingInput.thinking": text("Earlier reasoning of the assistant."),
    "AnthropicThinkingInput.signature": text("Without effect here."),
    "AnthropicToolUseInput.id": text("Named by the block with the result."),
    "AnthropicToolUseInput.name": text("The tool."),
    "AnthropicToolUseInput.input": text("The arguments."),
    "AnthropicToolResultInput.tool_use_id": text("The call that it answers."),
    "AnthropicToolResultInput.content": text("The result.", **either(_TEXT, array(ref("AnthropicTextInput")), NULL)),
    "AnthropicToolResultInput.is_error": text("The call failed.", default=False),
    "AnthropicCustomTool.name": text("By which it is called.", **_FUNCTION_NAME),
    "AnthropicCustomTool.type": text("Anthropic's own tools are not built.", enum=["custom", None]),
    "AnthropicCustomTool.input_schema": text("A JSON schema of the arguments."),
    "AnthropicCustomTool.description": text("For the model."),
    "AnthropicCustomTool.strict": text("The arguments keep to the schema.", default=False),
    "AnthropicCustomTool.eager_input_streaming": text("Without effect: all input is streamed as it comes."),
    "AnthropicCustomTool.defer_loading": text("Without effect here."),
    "AnthropicCustomTool.allowed_callers": text("Without effect here."),
    "AnthropicThinking.type": text("disabled: no reasoning.", enum=["enabled", "disabled", "adaptive"]),
    "AnthropicThinking.budget_tokens": text("Without effect here."),
    "AnthropicThinking.display": text("omitted: the answer's thinking blocks are empty.", default="summarized"),
    "AnthropicOutputConfig.effort": text("For templates of models that reason."),
    "AnthropicOutputConfig.format": text("The form of the answer."),
    "AnthropicOutputFormat.type": text("What follows."),
    "AnthropicOutputFormat.schema": text("A JSON schema."),
    "AnthropicToolChoice.type": text("any: some tool; tool: the one that is named."),
    "AnthropicToolChoice.name": text("With type tool."),
    "AnthropicToolChoice.disable_parallel_tool_use": text("At most one call.", default=False),
}
for _name in ("AnthropicMessagesRequest", "AnthropicConversation"):
    _own = {
        "messages": text("The conversation so far.", items=ref("AnthropicInputMessage"), minItems=1),
        "tools": text("Tools that the model may call.", items=ref("AnthropicCustomTool")),
        "tool_choice": text("Whether the model calls, and what."),
    }
    ANTHROPIC = {**ANTHROPIC, **{f"{_name}.{field}": schema for field, schema in _own.items()}}

_RESPONSES_PARTS = array(ref("ResponsesPartInput"), minItems=1)


def _item(kind: str, component: str, *, optional: bool = False) -> Schema:
    head = {"type": "object", "properties": {"type": {"const": kind}}, "required": [] if optional else ["type"]}
    return {"allOf": [head, ref(component)]}


_RESPONSES_ITEM = either(
    _item("message", "ResponsesMessageInput", optional=True),
    _item("function_call", "ResponsesCallInput"),
    _item("function_call_output", "ResponsesCallOutputInput"),
    _item("reasoning", "ResponsesReasoningInput"),
    _item("item_reference", "ResponsesReferenceInput"),
)

RESPONSES: Mapping[str, Schema] = {
    "input": text(
        "A text or items.",
        **either(_TEXT, array(_RESPONSES_ITEM)),
    ),
    "instructions": text("The system's message, which following responses do not keep."),
    "previous_response_id": text("A kept response whose conversation goes on."),
    "ResponsesResponseRequest.tools": text(
        "Functions that the model may call.", items=ref("ResponsesFunctionTool"), maxItems=conversation.MAX_TOOLS
    ),
    "ResponsesResponseRequest.tool_choice": text(
        "Whether the model calls, and what. Without it auto where there are tools.",
        **either(
            _MODES,
            _typed("function", name=_TEXT),
            _typed(
                "allowed_tools",
                mode={"enum": ["auto", "required"]},
                tools=array(_typed("function", name=_TEXT), minItems=1),
            ),
            NULL,
        ),
    ),
    "ResponsesResponseRequest.text": text("The form of the answer."),
    "ResponsesTextConfig.format": text(
        "text, json_object, or json_schema with name and schema.",
        **either(
            _typed("text"),
            _typed("json_object"),
            {"allOf": [_typed("json_schema"), _NAMED_SCHEMA]},
            NULL,
        ),
    ),
    "ResponsesTextConfig.verbosity": text("Without effect here."),
    "reasoning": text("For models that reason."),
    "ResponsesReasoningConfig.effort": text("For templates that read it.", enum=[*EFFORTS, None]),
    "ResponsesReasoningConfig.summary": text("Without effect here."),
    "include": text("What else the answer tells.", items={"enum": [LOGPROBS, ENCRYPTED]}),
    "max_output_tokens": text("Most tokens of the answer.", minimum=1),
    "truncation": text("auto: the oldest turns are left out where the conversation is too long.", default="disabled"),
    "store": text("The response is kept, in memory and within bounds.", default=True),
    "background": text("The response is made while the client does something else.", default=False),
    "metadata": text("Up to 16 pairs of text that the response repeats.", maxProperties=16),
    "ResponsesResponseRequest.stream_options": text("Only with stream."),
    **{
        f"ResponsesResponseRequest.{name}": text("Not built.", **either(NULL))
        for name in ("conversation", "prompt", "context_management", "moderation", "access_programs")
    },
    "ResponsesMessageInput.role": text("Whose message it is; developer means system."),
    "ResponsesMessageInput.content": text("Text or parts of text.", **either(_TEXT, _RESPONSES_PARTS)),
    "ResponsesPartInput.type": text("Which kind it is.", enum=["input_text", "output_text", "text", "refusal"]),
    "ResponsesPartInput.text": text("The text."),
    "ResponsesPartInput.refusal": text("Of the assistant, in place of text."),
    "ResponsesCallInput.call_id": text("Named by the item with the call's result."),
    "ResponsesCallInput.name": text("The function."),
    "ResponsesCallInput.arguments": text("JSON, as text."),
    "ResponsesCallOutputInput.call_id": text("The call that it answers."),
    "ResponsesCallOutputInput.output": text("The result.", **either(_TEXT, array(ref("ResponsesPartInput")))),
    "ResponsesReasoningPart.text": text("The text."),
    "ResponsesReasoningInput.content": text("Earlier reasoning of the assistant."),
    "ResponsesReasoningInput.summary": text("Read where there is no content."),
    "ResponsesReferenceInput.id": text("Of an item of a kept response."),
    "ResponsesFunctionTool.name": text("By which it is called.", **_FUNCTION_NAME),
    "ResponsesFunctionTool.type": text("What it is."),
    "ResponsesFunctionTool.description": text("For the model."),
    "ResponsesFunctionTool.parameters": text("A JSON schema of the arguments."),
    "ResponsesFunctionTool.strict": text("The arguments keep to the schema.", default=False),
    **{
        f"Responses{kind}.id": text("Of the item; made where it is missing.")
        for kind in ("MessageInput", "CallInput", "CallOutputInput", "ReasoningInput")
    },
}


def _with(required: list[str], **fields: Schema) -> Schema:
    return {"properties": fields, "required": required}


_PARTS = either(_TEXT, array(ref("TextPart"), minItems=1))
_NO_CALLS: Schema = {"maxItems": 0}
_ASSISTANT: Schema = {"const": "assistant"}
_USER_BLOCKS = array(either(ref("AnthropicTextInput"), ref("AnthropicToolResultInput")), minItems=1)
_ASSISTANT_BLOCKS = array(
    either(
        *map(ref, ("AnthropicTextInput", "AnthropicThinkingInput", "AnthropicToolUseInput")),
        _typed("redacted_thinking"),
    ),
    minItems=1,
)
_EITHER_PROMPT = either(
    _with(["prompt"], prompt=_TEXT, messages=NULL, tools=_NO_CALLS),
    _with(["messages"], messages={"type": "array"}, prompt=NULL),
)

# Whole types: how their fields depend on each other.
TYPES: Mapping[str, Schema] = {
    "Message": either(
        _with(["content"], role={"enum": ["system", "developer", "user"]}, content=_PARTS, tool_calls=_NO_CALLS),
        _with(
            ["content", "tool_call_id"],
            role={"const": "tool"},
            content=either(_TEXT, array(ref("TextPart"))),
            tool_call_id=_TEXT,
            tool_calls=_NO_CALLS,
        ),
        _with(["content"], role=_ASSISTANT, content=_PARTS),
        _with(["tool_calls"], role=_ASSISTANT, tool_calls={"type": "array", "minItems": 1}),
        _with(["refusal"], role=_ASSISTANT, refusal={"type": "string", "minLength": 1}),
    ),
    "TextPart": either(
        _with(["text"], type={"const": "text"}, text=_TEXT),
        _with(["refusal"], type={"const": "refusal"}, refusal=_TEXT),
    ),
    "ToolDefinition": {"required": ["type", "function"]},
    "TokenizeRequest": _EITHER_PROMPT,
    "AnthropicInputMessage": either(
        _with([], role={"const": "user"}, content=either(_TEXT, _USER_BLOCKS)),
        _with([], role=_ASSISTANT, content=either(_TEXT, _ASSISTANT_BLOCKS)),
        _with([], role={"const": "system"}, content=either(_TEXT, _ANTHROPIC_TEXTS)),
    ),
    "AnthropicToolChoice": either(
        _with([], type={"enum": ["auto", "any", "none"]}), _with(["name"], type={"const": "tool"}, name=_TEXT)
    ),
    "ResponsesResponseRequest": {"required": ["model", "input"]},
    "ResponsesPartInput": either(
        _with(["text"], type={"enum": ["input_text", "output_text", "text"]}, text=_TEXT),
        _with(["refusal"], type={"const": "refusal"}, refusal=_TEXT),
    ),
}


# Without defaults of the model's own.
_DEFAULTS: Mapping[str, float] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


def of_server(services: Services) -> dict[str, Schema]:
    """What depends on this server's own settings and model."""
    settings, model = services.settings, services.model
    hottest = min(2.0, settings.max_temperature)
    warmth = "How far sampling strays from the most likely token; 0: not at all."
    given = {**SAMPLING, "temperature": text(warmth, minimum=0, maximum=hottest)}
    bounded = {
        name: {**given[name], "default": model.sampling_defaults.get(name, _DEFAULTS[name])} for name in _DEFAULTS
    }
    bounded |= _of_chat_web(services)
    bounded["n"] = text("Answers to each prompt.", minimum=1, maximum=settings.max_choices, default=1)
    return bounded


def of_roseinfer(services: Services) -> dict[str, Schema]:
    defaults = services.settings.generate
    of_model = of_server(services)
    top_p = "Only the most likely tokens whose probabilities sum to this are drawn from; 0 and 1: all."
    fields = {
        "prompt": text("The text that goes on."),
        "max_new_tokens": text("Most tokens of the answer.", minimum=0, default=MAX_NEW_TOKENS),
        "temperature": {**of_model["temperature"], "default": defaults.temperature},
        "top_k": {**SAMPLING["top_k"], "default": defaults.top_k},
        "top_p": text(top_p, minimum=0, maximum=1, default=defaults.top_p),
        "stop_on_eos": text("The model's end tokens end the answer.", default=defaults.stop_on_eos),
        "do_sample": text("Tokens are drawn; false: each is the most likely one.", default=defaults.do_sample),
        "stream": text("What follows the prompt comes as plain text while it is made.", default=False),
    }
    return {f"RoseinferRequest.{name}": schema for name, schema in fields.items()}


def _of_chat_web(services: Services) -> dict[str, Schema]:
    bounds, defaults = bounds_of(services.settings), services.settings.web_defaults
    warmth = "How far sampling strays from the most likely token; 0: not at all."
    drawn = "Only so many of the most likely tokens are drawn from; 0: all."
    length = "Most tokens of the answer; it ends sooner where the context does."
    return {
        "NanochatChatRequest.messages": text(
            f"The conversation so far, of {bounds.total_chars} characters at most.",
            items=ref("NanochatMessage"),
            minItems=1,
            maxItems=bounds.messages,
        ),
        "NanochatChatRequest.temperature": text(
            warmth, default=defaults.temperature, **_as_text("number", DECIMAL, 0, bounds.max_temperature)
        ),
        "NanochatChatRequest.top_k": text(
            drawn, default=defaults.top_k, **_as_text("integer", INTEGER, bounds.min_top_k, bounds.max_top_k)
        ),
        "NanochatChatRequest.max_tokens": text(
            length, default=defaults.max_tokens, **_as_text("integer", INTEGER, 1, bounds.max_tokens)
        ),
        "NanochatMessage.role": text("Whose message it is.", enum=list(ROLES)),
        "NanochatMessage.content": text("The text.", minLength=1, maxLength=bounds.message_chars),
    }


def _as_text(kind: str, form: str, low: float, high: float) -> Schema:
    """A number, or a text that spells one."""
    number = {"type": kind, "minimum": low, "maximum": high}
    return either(number, {"type": "string", "pattern": f"^{form}$"}, NULL)


def all_fields(services: Services) -> dict[str, Schema]:
    fixed = {**SAMPLING, **SHAPES, **CHAT, **COMPLETIONS, **TOKENS, **ANTHROPIC, **RESPONSES}
    return {**fixed, **of_server(services), **of_roseinfer(services)}
