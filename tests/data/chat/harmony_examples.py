"""A chat template with the rules of gpt-oss's own, and a small tokenizer with the symbols of harmony."""

from pathlib import Path

from data.text.hf_tokenizer import HFTokenizer
from tests.data.chat import hf_examples

SYMBOLS = [f"<|{name}|>" for name in ("start", "end", "message", "channel", "constrain", "return", "call")]

TEMPLATE = """\
{%- macro said(channel, text, end) %}{{ "<|start|>assistant<|channel|>" + channel + "<|message|>" + text + end }}{% endmacro %}
{{- "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\\nKnowledge cutoff: 2024-06\\n" }}
{{- "Current date: " + strftime_now("%Y-%m-%d") + "\\n\\nReasoning: " + (reasoning_effort or "medium") + "\\n\\n" }}
{{- "# Valid channels: analysis, commentary, final. Channel must be included for every message." }}
{%- if tools %}{{- "\\nCalls to these tools must go to the commentary channel: 'functions'." }}{% endif %}
{{- "<|end|>" }}
{%- set told = messages[0].content if messages[0].role in ["system", "developer"] else "" %}
{%- if told or tools %}
    {{- "<|start|>developer<|message|>" + ("# Instructions\\n\\n" + told + "\\n\\n" if told else "") }}
    {%- if tools %}
        {{- "# Tools\\n\\n## functions\\n\\nnamespace functions {\\n\\n" }}
        {%- for tool in tools %}
            {{- "// " + tool.function.description + "\\ntype " + tool.function.name + " = " }}
            {%- if tool.function.parameters and tool.function.parameters.properties %}
                {{- "(_: {\\n" }}
                {%- for name, of in tool.function.parameters.properties.items() %}
                    {{- name + ("" if name in (tool.function.parameters.required or []) else "?") + ": " + of.type + ",\\n" }}
                {%- endfor %}
                {{- "}) => any;\\n\\n" }}
            {%- else %}{{- "() => any;\\n\\n" }}{% endif %}
        {%- endfor %}
        {{- "} // namespace functions" }}
    {%- endif %}
    {{- "<|end|>" }}
{%- endif %}
{%- set rest, last = messages[1:] if told else messages, namespace(call="") %}
{%- for message in rest %}
    {%- if message.role == "assistant" and "tool_calls" in message %}
        {%- set call, later = message.tool_calls[0].function, namespace(answer=false) %}
        {%- for other in rest[loop.index:] if other.role == "assistant" and "tool_calls" not in other %}
            {%- set later.answer = true %}
        {%- endfor %}
        {%- if message.content and message.thinking %}{{- raise_exception("content and thinking with a call") }}{% endif %}
        {%- if (message.content or message.thinking) and not later.answer %}
            {{- said("analysis", message.content or message.thinking, "<|end|>") }}
        {%- endif %}
        {{- "<|start|>assistant to=functions." + call.name + "<|channel|>commentary json<|message|>" }}
        {{- (call.arguments | tojson) + "<|call|>" }}
        {%- set last.call = call.name %}
    {%- elif message.role == "assistant" and loop.last and not add_generation_prompt %}
        {{- said("analysis", message.thinking, "<|end|>") if "thinking" in message else "" }}
        {{- said("final", message.content, "<|return|>") }}
    {%- elif message.role == "assistant" %}
        {{- said("final", message.content, "<|end|>") }}
    {%- elif message.role == "tool" %}
        {{- "<|start|>functions." + last.call + " to=assistant<|channel|>commentary<|message|>" }}
        {{- (message.content | tojson) + "<|end|>" }}
    {%- elif message.role == "user" %}{{- "<|start|>user<|message|>" + message.content + "<|end|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- "<|start|>assistant" }}{% endif %}"""

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def folder(path: Path) -> Path:
    tokenizer = hf_examples.gpt2()
    tokenizer.add_special_tokens(SYMBOLS)
    config = {"eos_token": "<|return|>", "pad_token": "<|endoftext|>", "chat_template": TEMPLATE}
    return hf_examples.folder(path, tokenizer, tokenizer_config=config)


def tokenizer(path: Path) -> HFTokenizer:
    return HFTokenizer(folder(path))
