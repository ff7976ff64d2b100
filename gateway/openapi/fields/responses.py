"""Fields of /v1/responses."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.openapi.fields.forms import (
    FUNCTION_NAME,
    MODES,
    NAMED_SCHEMA,
    NULL,
    TEXT,
    Schema,
    array,
    either,
    ref,
    text,
    typed,
)
from gateway.requests import conversation
from gateway.requests.chat_prompt import EFFORTS
from gateway.responses.convert import ENCRYPTED, LOGPROBS

_PARTS = array(ref("ResponsesPartInput"), minItems=1)


def _item(kind: str, component: str, *, optional: bool = False) -> Schema:
    head = {"type": "object", "properties": {"type": {"const": kind}}, "required": [] if optional else ["type"]}
    return {"allOf": [head, ref(component)]}


_ITEM = either(
    _item("message", "ResponsesMessageInput", optional=True),
    _item("function_call", "ResponsesCallInput"),
    _item("function_call_output", "ResponsesCallOutputInput"),
    _item("reasoning", "ResponsesReasoningInput"),
    _item("item_reference", "ResponsesReferenceInput"),
)

RESPONSES: Mapping[str, Schema] = {
    "input": text(
        "A text or items.",
        **either(TEXT, array(_ITEM)),
    ),
    "instructions": text("The system's message, which following responses do not keep."),
    "previous_response_id": text("A kept response whose conversation goes on."),
    "ResponsesResponseRequest.tools": text(
        "Functions that the model may call.", items=ref("ResponsesFunctionTool"), maxItems=conversation.MAX_TOOLS
    ),
    "ResponsesResponseRequest.tool_choice": text(
        "Whether the model calls, and what. Without it auto where there are tools.",
        **either(
            MODES,
            typed("function", name=TEXT),
            typed(
                "allowed_tools",
                mode={"enum": ["auto", "required"]},
                tools=array(typed("function", name=TEXT), minItems=1),
            ),
            NULL,
        ),
    ),
    "ResponsesResponseRequest.text": text("The form of the answer."),
    "ResponsesTextConfig.format": text(
        "text, json_object, or json_schema with name and schema.",
        **either(
            typed("text"),
            typed("json_object"),
            {"allOf": [typed("json_schema"), NAMED_SCHEMA]},
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
    "ResponsesMessageInput.content": text("Text or parts of text.", **either(TEXT, _PARTS)),
    "ResponsesPartInput.type": text("Which kind it is.", enum=["input_text", "output_text", "text", "refusal"]),
    "ResponsesPartInput.text": text("The text."),
    "ResponsesPartInput.refusal": text("Of the assistant, in place of text."),
    "ResponsesCallInput.call_id": text("Named by the item with the call's result."),
    "ResponsesCallInput.name": text("The function."),
    "ResponsesCallInput.arguments": text("JSON, as text."),
    "ResponsesCallOutputInput.call_id": text("The call that it answers."),
    "ResponsesCallOutputInput.output": text("The result.", **either(TEXT, array(ref("ResponsesPartInput")))),
    "ResponsesReasoningPart.text": text("The text."),
    "ResponsesReasoningInput.content": text("Earlier reasoning of the assistant."),
    "ResponsesReasoningInput.summary": text("Read where there is no content."),
    "ResponsesReferenceInput.id": text("Of an item of a kept response."),
    "ResponsesFunctionTool.name": text("By which it is called.", **FUNCTION_NAME),
    "ResponsesFunctionTool.type": text("What it is."),
    "ResponsesFunctionTool.description": text("For the model."),
    "ResponsesFunctionTool.parameters": text("A JSON schema of the arguments."),
    "ResponsesFunctionTool.strict": text("The arguments keep to the schema.", default=False),
    **{
        f"Responses{kind}.id": text("Of the item; made where it is missing.")
        for kind in ("MessageInput", "CallInput", "CallOutputInput", "ReasoningInput")
    },
}
