"""Fields of chats, completions, tokens and embeddings."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.openapi.fields.forms import (
    ALLOWED_TOOLS,
    CHOICES,
    FUNCTION_NAME,
    JSON_OR_TEXT,
    MODES,
    NAMED_FUNCTION,
    NAMED_SCHEMA,
    NULL,
    PATTERN,
    PROMPT,
    STOP,
    TEXT,
    Schema,
    array,
    either,
    ref,
    text,
    typed,
)
from gateway.requests import conversation, convert
from gateway.requests.chat_prompt import EFFORTS

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
        **either(STOP, array(STOP, maxItems=convert.MAX_STOPS), NULL),
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
    "bad_words": text("Strings that the answer does not hold.", items=STOP, maxItems=convert.MAX_BAD_WORDS),
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
        **either(typed("text"), typed("json_object"), typed("json_schema", json_schema=NAMED_SCHEMA), NULL),
    ),
    "structured_outputs": text(
        "The form of the answer: one of json (a schema), json_object, regex, choice and grammar (Lark or GBNF).",
        properties={
            "json": either(JSON_OR_TEXT, NULL),
            "json_object": {"type": ["boolean", "null"]},
            "regex": either(PATTERN, NULL),
            "choice": either(CHOICES, NULL),
            "grammar": either(PATTERN, NULL),
        },
    ),
    "guided_json": text("As structured_outputs.json.", **either(JSON_OR_TEXT, NULL)),
    "guided_regex": text("As structured_outputs.regex.", **either(PATTERN, NULL)),
    "guided_choice": text("As structured_outputs.choice.", **either(CHOICES, NULL)),
    "guided_grammar": text("As structured_outputs.grammar.", **either(PATTERN, NULL)),
}

CHAT: Mapping[str, Schema] = {
    "messages": text("The conversation so far.", items=ref("Message"), minItems=1),
    "max_completion_tokens": text("The newer name of max_tokens, before which it goes.", minimum=1),
    "ChatRequest.logprobs": text("The answer tells the log-probability of each token.", default=False),
    "top_logprobs": text("With logprobs: so many alternatives of each token.", minimum=0, maximum=convert.MAX_LOGPROBS),
    "tools": text("Functions that the model may call.", items=ref("ToolDefinition"), maxItems=conversation.MAX_TOOLS),
    "tool_choice": text(
        "Whether the model calls, and what. Without it auto where there are tools.",
        **either(MODES, NAMED_FUNCTION, ALLOWED_TOOLS, NULL),
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
        **either(TEXT, array(ref("TextPart"), minItems=1), NULL),
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
    "FunctionDefinition.name": text("By which it is called.", **FUNCTION_NAME),
    "FunctionDefinition.description": text("For the model."),
    "FunctionDefinition.parameters": text("A JSON schema of the arguments."),
    "FunctionDefinition.strict": text("The arguments keep to the schema.", default=False),
}

COMPLETIONS: Mapping[str, Schema] = {
    "CompletionRequest.prompt": text("A text or its token ids, or an array of several.", **PROMPT),
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
    "EmbeddingRequest.input": text("A text or its token ids, or an array of several.", **PROMPT),
    "EmbeddingRequest.encoding_format": text("base64: of float32, little-endian.", default="float"),
    "EmbeddingRequest.dimensions": text("Only so many of the first numbers, scaled to length 1.", minimum=1),
}
