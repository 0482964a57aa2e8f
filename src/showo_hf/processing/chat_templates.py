"""The Jinja templates of conversations, one for each way to see; a saved processor has its own in `chat_template.jinja`.

What a message holds, in transformers' form: a text, or a list of `{"type": "text", "text": ...}` and `{"type": "image"}`.
`<|sov|>` is the placeholder of an image. The images of the first message stand before its text, as the models were
trained; those of later messages stand where they were put. An answer ends with the end of text, and a further turn
follows it at once.
"""

#: The beginning of a conversation with the variant that sees CLIP features.
CLIP_SYSTEM_PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)

_MACROS = """\
{%- macro parts(content, with_images=true) -%}
{%- if content is string -%}
{{ content }}
{%- else -%}
{%- for part in content -%}
{%- if part.type == "text" -%}
{{ part.text }}
{%- elif part.type != "image" -%}
{{ raise_exception("the type of a content part must be 'text' or 'image', got '" ~ part.type ~ "'") }}
{%- elif with_images -%}
<|sov|>
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- macro images(content) -%}
{%- if content is not string -%}
{%- for part in content if part.type == "image" -%}<|sov|>{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- set system = none -%}
{%- if messages and messages[0].role == "system" -%}
{%- set system = parts(messages[0].content, false) -%}
{%- set messages = messages[1:] -%}
{%- endif -%}
{%- set seen = images(messages[0].content) if messages and messages[0].role == "user" else "" -%}
"""

_DISCRETE_HEAD = """\
{%- if seen -%}<|mmu|>{{ seen }}{%- endif -%}
{{ bos_token }}
{%- if system is not none -%}{{ system }}{{ " " }}{%- endif -%}
"""

# Text alone starts with the start of text, as everywhere else.
_CLIP_HEAD = """\
{{ "<|mmu|>" if seen else bos_token }}
{{- system if system is not none else SYSTEM_PROMPT }}
{{- seen -}}
"""

# An answer's first word has one space before it, whether the message has it or not; an image has none.
_TURNS = """\
{%- for message in messages -%}
{%- if message.role == "user" -%}
{{ USER }}{{ parts(message.content, not loop.first) }} ASSISTANT:
{%- elif message.role == "assistant" -%}
{%- generation -%}
{%- set answer = parts(message.content) | trim -%}
{{ answer if answer.startswith("<|sov|>") else " " ~ answer }}{{ eos_token }}
{%- endgeneration -%}
{%- else -%}
{{ raise_exception("the role of a message must be 'user', 'assistant' or, first, 'system', got '" ~ message.role ~ "'") }}
{%- endif -%}
{%- endfor -%}
"""

#: `mmu (soi image eoi)* sot USER: \\n question ASSISTANT: answer eot`; without `mmu` where there is no image first.
DISCRETE_TEMPLATE = _MACROS + _DISCRETE_HEAD + _TURNS.replace("USER }}", '"USER: \\n" }}')
#: `mmu system (soi features eoi)* USER: question ASSISTANT: answer eot`.
CLIP_TEMPLATE = (
    _MACROS + _CLIP_HEAD.replace("SYSTEM_PROMPT", f'"{CLIP_SYSTEM_PROMPT}"') + _TURNS.replace("USER }}", '"USER: " }}')
)
