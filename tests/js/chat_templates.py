"""Templates in the manner of known families, and small templates for single parts of Jinja and Python."""

# ruff: noqa: E501

from __future__ import annotations

from runtimes.conformance.make.gemma4 import CHAT_TEMPLATE

CHATML = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}
{{- '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}{% endif %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

LLAMA_2 = """{% if messages[0]['role'] == 'system' %}
    {% set rest = messages[1:] %}{% set system = messages[0]['content'] %}
{% else %}
    {% set rest = messages %}{% set system = false %}
{% endif %}
{% for message in rest %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('Roles must alternate user/assistant, found ' ~ message.role) }}
    {% endif %}
    {% if loop.index0 == 0 and system != false %}
        {% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + message['content'] %}
    {% else %}
        {% set content = message['content'] %}
    {% endif %}
    {% if message['role'] == 'user' %}
{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' -}}
    {% elif message['role'] == 'assistant' %}
{{ ' ' + content.strip() + ' ' + eos_token }}
    {%- endif %}
{% endfor %}"""

LLAMA_3 = """{{- bos_token }}
{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}
{%- if not tools_first is defined %}{%- set tools_first = true %}{%- endif %}
{%- if not date is defined %}
    {%- if strftime_now is defined %}{%- set date = strftime_now("%Y") %}{%- else %}{%- set date = "2024" %}{%- endif %}
{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = "" %}
{%- endif %}
{{- "<|start|>system<|end|>\\n\\n" }}
{%- if tools is not none %}{{- "Environment: ipython\\n" }}{%- endif %}
{{- "Year: " + date + "\\n\\n" }}{{- system }}{{- "<|eot|>" }}
{%- if tools_first and not tools is none %}
    {%- if messages | length != 0 %}
        {%- set first = messages[0]['content']|trim %}
        {%- set messages = messages[1:] %}
    {%- else %}
        {{- raise_exception("There is no first user message.") }}
    {%- endif %}
    {{- '<|start|>user<|end|>\\n\\n' -}}
    {{- 'Respond in the format {"name": name, "parameters": dictionary of argument name and its value}.' }}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}
    {{- first + "<|eot|>"}}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start|>' + message['role'] + '<|end|>\\n\\n'+ message['content'] | trim + '<|eot|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("Only one tool call at once!") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '{"name": "' + call.name + '", ' }}{{- '"parameters": ' }}{{- call.arguments | tojson }}{{- "}<|eot|>" }}
        {%- for name, value in call.arguments | items %}
            {{- name + '="' + value|string + '"' }}{%- if not loop.last %}{{- ", " }}{%- endif %}
        {%- endfor %}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start|>ipython<|end|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}{{- message.content | tojson }}
        {%- else %}{{- message.content }}{%- endif %}{{- "<|eot|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant<|end|>\\n\\n' }}{%- endif %}"""

MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace(index=0) %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or message.tool_calls is defined) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("user and assistant must alternate") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function if tool.function is defined else tool %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}{{- '"' + key + '": "' + val + '"' }}
                    {%- else %}{{- '"' + key + '": ' + val|tojson }}{%- endif %}
                    {%- if not loop.last %}{{- ", " }}{%- endif %}
                {%- endfor %}
                {{- "}}" }}{%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" }}{%- endif %}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}{{- "[INST] " + message["content"] + "[/INST]" }}{%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function|tojson %}{{- out[:-1] }}
            {%- if not tool_call.id is defined or tool_call.id|length != 9 %}
                {{- raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}
            {%- endif %}
            {{- ', "id": "' + tool_call.id + '"}' }}{{- ", " if not loop.last else "]" + eos_token }}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}{{- " " + message["content"]|trim + eos_token}}
    {%- elif message["role"] == "tool" %}
        {{- '[TOOL_RESULTS] {"content": ' + message.content|string + "}" }}
    {%- else %}{{- raise_exception("Only user, assistant and tool roles are supported!") }}{%- endif %}
{%- endfor %}"""

QWEN = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "# Tools\\n\\nFunctions within <tools></tools>:\\n<tools>" }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\\n</tools>\\n{\\"name\\": <name>, \\"arguments\\": <object>}<|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and
        not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}{%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}{%- set content = message.content %}{%- else %}{%- set content = '' %}{%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}{%- set reasoning_content = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or (not loop.last and reasoning_content)) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' }}
            {{- content.lstrip('\\n') }}
        {%- else %}{{- '<|im_start|>' + message.role + '\\n' + content }}{%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}{{- '\\n' }}{%- endif %}
                {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
                {{- '<tool_call>\\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}
                {%- if tool_call.arguments is string %}{{- tool_call.arguments }}
                {%- else %}{{- tool_call.arguments | tojson }}{%- endif %}{{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' }}{{- content }}{{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""

DEEPSEEK = """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}
{% set ns = namespace(is_first=false, is_tool=false, is_output_first=true, system='', is_first_sp=true) %}
{%- for message in messages %}{%- if message['role'] == 'system' %}{%- if ns.is_first_sp %}
{% set ns.system = ns.system + message['content'] %}{% set ns.is_first_sp = false %}{%- else %}
{% set ns.system = ns.system + '\\n\\n' + message['content'] %}{%- endif %}{%- endif %}{%- endfor %}
{{ bos_token }}{{ ns.system }}
{%- for message in messages %}
{%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}{{'<|User|>' + message['content']}}{%- endif %}
{%- if message['role'] == 'assistant' and 'tool_calls' in message %}{%- set ns.is_tool = false -%}
{%- for tool in message['tool_calls'] %}{%- if not ns.is_first %}
{{'<|Calls|>' + tool['type'] + '<|sep|>' + tool['function']['name'] + '\\n```json\\n' + tool['function']['arguments']|string}}
{%- set ns.is_first = true -%}{%- else %}{{'\\n<|Call|>' + tool['type']}}{%- endif %}{%- endfor %}{%- endif %}
{%- if message['role'] == 'assistant' and 'tool_calls' not in message %}
{%- if ns.is_tool %}{{'<|tool_end|>' + message['content'] + eos_token}}{%- set ns.is_tool = false -%}
{%- else %}{% set content = message['content'] %}
{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}
{{'<|Assistant|>' + content + eos_token}}{%- endif %}{%- endif %}
{%- if message['role'] == 'tool' %}{%- set ns.is_tool = true -%}{%- if ns.is_output_first %}
{{'<|outputs|>' + message['content']}}{%- set ns.is_output_first = false %}{%- endif %}{%- endif %}
{%- endfor -%}{% if ns.is_tool %}{{'<|outputs_end|>'}}{% endif %}
{% if add_generation_prompt and not ns.is_tool %}{{'<|Assistant|><think>\\n'}}{% endif %}"""

GEMMA = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}{%- set prefix = messages[0]['content'] + '\\n\\n' -%}
    {%- else -%}{%- set prefix = messages[0]['content'][0]['text'] + '\\n\\n' -%}{%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}{%- set prefix = "" -%}{%- set loop_messages = messages -%}{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}{%- set role = "model" -%}
    {%- else -%}{%- set role = message['role'] -%}{%- endif -%}
    {{ '<start_of_turn>' + role + '\\n' + (prefix if loop.first else "") }}
    {%- if message['content'] is string -%}{{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}{{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}
        {%- endfor -%}
    {%- else -%}{{ raise_exception("Invalid content type") }}{%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{'<start_of_turn>model\\n'}}{%- endif -%}"""

MACROS = """
{%- macro describe(name, schema, level=0) -%}
{{ '  ' * level }}- {{ name }} ({{ schema.type | default('any') }}{{ ', one of ' ~ schema.enum | join('|') if schema.enum }})
{%- for key, value in (schema.properties or {}).items() | sort %}
{{ describe(key, value, level + 1) }}
{%- endfor %}
{%- endmacro -%}
{%- macro box(title) %}[{{ title }}: {{ caller(title | length) }}]{% endmacro -%}
{% for tool in tools or [] %}
{%- set f = tool.function | default(tool) %}
{{ describe(f.name, f.parameters | default({})) }}
{% endfor %}
{% call(size) box('messages') %}{{ messages | length * size }}{% endcall %}
{% for role, group in messages | groupby('role') %}
{{ role }}={{ group | map(attribute='content') | map('string') | map('length') | sum }};
{%- else %}nobody{% endfor %}
{% for m in messages %}{% if m.role == 'tool' %}{% continue %}{% endif %}
{%- set shown %}{{ loop.index }}/{{ loop.length }} {{ m.content | string | upper | truncate(20) }}{% endset %}
{{ shown | indent(4, true) }} {{ loop.cycle('odd', 'even') }}{{ ' changed' if loop.changed(m.role) }}
{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% endif %}
{% endfor %}"""

GEMMA_4 = (
    CHAT_TEMPLATE
    + """{%- macro first(value) -%}{{ second(value['type'] if value['type'] is string else value['type'][0]) }}{%- endmacro -%}
{%- macro second(value, as_list=False) -%}{{ value | upper }}{{ ['a', value] | map('upper') | list if as_list }}{%- endmacro -%}
{{- first({'type': 'string'}) ~ first({'type': ['null', 'b']}) ~ second('x', as_list=True) -}}
{%- if not enable_thinking | default(false) -%}{{ '<|channel>thought\n<channel|>' }}{%- endif -%}"""
)

TEMPLATES = {
    "chatml": CHATML,
    "llama 2": LLAMA_2,
    "llama 3": LLAMA_3,
    "mistral": MISTRAL,
    "qwen": QWEN,
    "deepseek": DEEPSEEK,
    "gemma": GEMMA,
    "gemma 4": GEMMA_4,
    "macros": MACROS,
}

VALUES = [
    *(
        "'abc'",
        "''",
        "'Ab c\\n dE'",
        "'ß°🙂é'",
        "' \\t x\\u3000'",
        "'42'",
        "'-3.5e2'",
        "'a,b,,c'",
        '"it\'s"',
        "'%s-%s'",
    ),
    *("0", "1", "-7", "255", "10**20", "2.0", "-0.5", "1e16", "1e-5", "123456.789", "true", "false", "none", "nothing"),
    *(
        "[]",
        "[3, 1, 2]",
        "['b', 'A', 'c']",
        "[1, [2, 'x'], none]",
        "(1,)",
        "(1, 'b')",
        "{}",
        "{'a': 1, 'B': [2.5, none]}",
    ),
    *("{1: 'x', none: true}", "range(4)", "range(5, -5, -3)", "messages", "messages[0]", "messages[0].items()"),
    *("('b' if false)", "namespace(a=1)", "'<a href=\"x\">&'", "['x', 'y'] | map('upper')"),
]
FILTERS = [
    *("abs", "batch(2) | list", "batch(2, 'z') | list", "capitalize", "center(9)", "count", "default('D')"),
    *("default('D', true)", "d", "dictsort", "dictsort(true, 'value', true)", "e", "first", "float", "float(1.5)"),
    *(
        "forceescape",
        "int",
        "int(7)",
        "int(base=16)",
        "items | list",
        "join",
        "join('-')",
        "last",
        "length",
        "list",
        "lower",
    ),
    *(
        "map('string') | list",
        "map(attribute='role') | list",
        "max",
        "min",
        "reject | list",
        "reverse | list",
        "reverse",
    ),
    *(
        "round",
        "round(1)",
        "round(2, 'floor')",
        "round(0, 'ceil')",
        "round(-1)",
        "safe",
        "select | list",
        "slice(2) | list",
    ),
    *("select('string') | list", "reject('none') | list", "selectattr('role') | list", "sort", "sort(reverse=true)"),
    *(
        "sort(case_sensitive=true)",
        "string",
        "sum",
        "title",
        "trim",
        "trim('a')",
        "tojson",
        "tojson(indent=2)",
        "nofilter",
    ),
    *(
        "tojson(ensure_ascii=true)",
        "tojson(sort_keys=true, separators=(',', ':'))",
        "truncate(3)",
        "truncate(5, true, '')",
    ),
    *(
        "unique | list",
        "upper",
        "wordcount",
        "replace('a', 'XY')",
        "replace('', '-', 2)",
        "indent",
        "indent(2, true, true)",
    ),
    *(
        "groupby('role') | list",
        "format(1, 'b')",
        "escape | string",
        "attr('x')",
        "map('nofilter') | list",
        "indent('>')",
    ),
]
TESTS = [
    *("boolean", "callable", "defined", "divisibleby(2)", "divisibleby 3", "eq 1", "equalto('abc')", "escaped", "even"),
    *(
        "false",
        "filter",
        "float",
        "ge(1)",
        "gt 0",
        "in [1, 'abc', none]",
        "in 'abc'",
        "integer",
        "iterable",
        "le 2",
        "lower",
    ),
    *(
        "lt(5)",
        "mapping",
        "ne 1",
        "none",
        "not none",
        "number",
        "odd",
        "sameas none",
        "sameas(true)",
        "sequence",
        "string",
    ),
    *("test", "true", "undefined", "upper", "notest", "not in [1]"),
]
METHODS = [
    *("upper()", "lower()", "title()", "capitalize()", "swapcase()", "strip()", "lstrip('a ')", "rstrip()", "split()"),
    *(
        "split(',')",
        "split(',', 1)",
        "split(maxsplit=1)",
        "rsplit(',', 1)",
        "rsplit(none, 1)",
        "splitlines()",
        "join(['x', 'y'])",
    ),
    *("splitlines(true)", "partition('b')", "rpartition(',')", "startswith('a')", "endswith(('c', 'b'))", "find('b')"),
    *(
        "rfind('b', 1)",
        "index('b')",
        "rindex('z')",
        "count('')",
        "count('a', -2)",
        "replace('b', 'zz')",
        "replace('a', '', 1)",
    ),
    *(
        "removeprefix('a')",
        "removesuffix('c')",
        "center(8, '*')",
        "ljust(7)",
        "rjust(7, '.')",
        "zfill(6)",
        "expandtabs(4)",
    ),
    *(
        "isalpha()",
        "isdigit()",
        "isalnum()",
        "isspace()",
        "isupper()",
        "islower()",
        "isascii()",
        "isdecimal()",
        "isnumeric()",
    ),
    *(
        "format(1, 2)",
        "items() | list",
        "keys() | list",
        "values() | list",
        "get('a')",
        "get('zz', 'D')",
        "copy()",
        "index(1)",
    ),
    *(
        "append(1)",
        "pop()",
        "update({})",
        "__class__",
        "constructor",
        "__proto__",
        "toString",
        "length",
        "size",
        "nomethod()",
    ),
    *("_private", "a", "role", "0", "hasOwnProperty('a')", "push(1)", "__class__.__mro__", "prototype"),
]
SUBSCRIPTS = [
    *(
        "[0]",
        "[-1]",
        "[9]",
        "['a']",
        "['length']",
        "['__class__']",
        "['constructor']",
        "[1:]",
        "[:-1]",
        "[::2]",
        "[::-1]",
    ),
    *("[-2:9]", "[5:1]", "[3:0:-1]", "[none]", "[1.0]", "[true]", "['items']", "[0, 1]", "[[1]]", "['a':]", "[::0]"),
]
OPERATORS = ["+", "-", "*", "/", "//", "%", "**", "~", "==", "!=", "<", "<=", ">", ">=", "in", "not in", "and", "or"]
PRINTF = [
    *("'%d' % 3.7", "'%5d|%-5d|%05d|%+d|% d' % (1, 2, 3, 4, 5)", "'%x %X %o %#x' % (255, 255, 8, 255)", "'%s' % none"),
    *(
        "'%.2f %e %g %G' % (2.675, 12345.678, 0.0001, 1e-10)",
        "'%r %s' % ('a', 'b')",
        "'%(a)s-%(b)d' % {'a': 1, 'b': 2}",
    ),
    *(
        "'100%% %s' % 1",
        "'%s' % (1, 2)",
        "'%s %s' % 1",
        "'%d' % 'x'",
        "'%z' % 1",
        "'%.3s' % 'abcdef'",
        "'%8.3f|' % 3.14159",
    ),
    *(
        "'abc' % [1]",
        "'abc' % 1",
        "'%s' % [1, 'a']",
        "'%.0f %.0f %.0f' % (0.5, 1.5, 2.5)",
        "'%g' % 1e20",
        "'%g' % 100000",
    ),
    *("'%5%' % ()", "'%' % 1", "'%-08.3f|' % -2.5", "'%.1f' % -0.04", "'%e' % 0", "'%g' % 1234567.0", "'%i' % true"),
]
FORMATS = [
    *(
        "'{} {}'.format(1, 'a')",
        "'{0}{1}{0}'.format('a', 'b')",
        "'{a} {b!r}'.format(a=1, b='x')",
        "'{:>5}|{:<5}|{:^5}'.format(1, 2, 3)",
    ),
    *(
        "'{:,} {:_}'.format(1234567, 1234567)",
        "'{:.2f} {:.1%} {:e}'.format(2.675, 0.256, 12345.6)",
        "'{{}} {}'.format(1)",
    ),
    *(
        "'{:05d} {:+} {:x} {:b} {:o}'.format(42, 1, 255, 5, 8)",
        "'{:*^9}'.format('ab')",
        "'{:.2}'.format('abc')",
        "'{'.format(1)",
    ),
    *(
        "'{0[a]} {0[b][1]} {1.role}'.format({'a': 1, 'b': [1, 2]}, messages[0])",
        "'{} {0}'.format(1)",
        "'{x}'.format(1)",
    ),
    *(
        "'{:d}'.format('a')",
        "'{:s}'.format(1)",
        "'{:5}'.format(none)",
        "'{}'.format(nothing)",
        "'{:>08.2f}'.format(-3.14159)",
    ),
    *("'{:08.2f}'.format(-3.14159)", "'{:,.2f}'.format(1234567.891)", "'{:010,}'.format(12345)", "'{:g}'.format(1e7)"),
    *(
        "'{0.__class__}'.format(1)",
        "'{a}'.format_map({'a': 2})",
        "'{:5}|{:5}'.format('a', 1)",
        "'{:^+7.1f}'.format(2.25)",
    ),
    *("'{!s:>4}'.format(true)", "'{:5}'.format(true)", "'{:.3}'.format(1.5)", "'{:%}'.format(1)", "'{:}'.format(1.0)"),
]
SYNTAX = [
    "{{ 1 }}\n{% if true %}\n  a\n  {% endif %}\n b\n\n",
    "  {% if true %}  x  {%- endif %}  y  {%+ if true %} z\n{%+ endif +%}\n\n",
    "a {#- c -#} b {# d #}\n e\n   {# f #}\n g {#+ h +#}\n i",
    "{% raw %}{{ x }} {% if %}\n{% endraw %}\n!{%- raw -%}  a  {%- endraw -%}  b",
    "a\r\nb\r{{ 'c\r\nd' }}\n\n",
    "{{ '\\x41\\u00e9\\U0001F642\\101\\q\\n' }}{{ 'a' 'b' \"c\" }}{{ '\\'' }}",
    "{{ 1_000 }} {{ 0x1F }} {{ 0b101 }} {{ 0o17 }} {{ 1e3 }} {{ 1.5E-3 }} {{ 00 }} {{ 12345678901234567890123 }}",
    "{{ -2 ** 2 }} {{ 2 ** 3 ** 2 }} {{ -3 | abs }} {{ 1 + 2 * 3 - 4 // 2 }} {{ 7 % 3 * 2 }} {{ -(3) }} {{ +4 }}",
    "{{ 'a' ~ 1 + 2 }}",
    "{{ 1 + 2 ~ 3 }}",
    "{{ 'a' ~ (1 + 2) ~ none }}",
    "{{ 1 < 2 < 3 }} {{ 3 > 2 > 2 }} {{ 1 < 2 in [2] }}",
    "{{ not true == false }} {{ not 1 in [1] }} {{ 1 not in [2] }} {{ true and false or 5 }} {{ 0 or '' or 'z' }}",
    "{{ 1 if false }}|{{ 1 if false else 2 if false else 3 }}|{{ (1 if true) is defined }}",
    "{{ [1, 2, ] }} {{ (1, 2, ) }} {{ () }} {{ (1) }} {{ {'a': 1, } }} {{ 1, 2 }}",
    "{{ [1 2] }}",
    "{{ }}",
    "{{ 1 + }}",
    "{{ {'a': {'b': [1, {'c': 'd'}]}}.a.b[1].c }} {{ [[1]].0.0 }} {{ messages.0.role }}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set (c, d) = [3, 4] %}{{ c + d }}{% set e = 5, %}{{ e }}",
    "{% set a, b = 1 %}",
    "{% set a, b = [1, 2, 3] %}",
    "{% set x.y = 1 %}",
    "{% set 1 = 2 %}",
    "{% set none = 2 %}",
    "{% set x[0] = 2 %}",
    "{% set ns = namespace({'a': 1}, b=2) %}{% set ns.c = ns.a + ns.b %}{{ ns.c }}{{ ns.zz is defined }}{{ ns }}{{ ns['a'] }}",
    "{% set ns = namespace() %}{% for i in range(3) %}{% set ns.x = i %}{% set y = i %}{% endfor %}{{ ns.x }}{{ y is defined }}",
    "{% for i in [1, 2] %}{{ x }}{% set x = i %}{{ x }}{% endfor %}",
    "{% set x = 0 %}{% for i in [1, 2] %}{{ x }}{% set x = i %}{% endfor %}{{ x }}",
    "{% for i in [1] %}{{ bos_token }}{% endfor %}{% set bos_token = 'x' %}{{ bos_token }}",
    "{{ bos_token }}{% if false %}{% set bos_token = 1 %}{% endif %}{{ bos_token }}{% if true %}{% set bos_token = 2 %}{% endif %}{{ bos_token }}",
    "{% if false %}{% set eos_token = 1 %}{% endif %}{{ eos_token }}",
    "{% macro m() %}{{ bos_token }}{% endmacro %}{{ m() }}{% set bos_token = 1 %}{{ m() }}",
    "{% for i in [1, 2, 3] if i != 2 %}{{ i }}{{ loop.index }}{{ loop.length }}{{ loop.last }}{% else %}none{% endfor %}",
    "{% for i in [] %}x{% else %}empty{% endfor %}{% for i in [1] %}{% continue %}{% else %}odd{% endfor %}",
    "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% elif i > 4 %}{% break %}{% endif %}{{ i }}{% else %}e{% endfor %}",
    "{% for i in [1, 2] %}{% for j in 'ab' %}{{ loop.index }}{{ i }}{{ j }}{% endfor %}{{ loop.revindex }}{% endfor %}",
    "{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}{{ v }}{{ loop.previtem }}{{ loop.nextitem is defined }}{% endfor %}",
    "{% for x in [[1, [2]], [3]] recursive %}{{ loop.depth }}{{ loop(x) if x is iterable else x }}{% endfor %}",
    "{% for a in [1] %}{{ loop.cycle() }}{% endfor %}",
    "{% for a in 5 %}{% endfor %}",
    "{% for a in nothing %}{% else %}e{% endfor %}",
    "{% for a in [1,2,2,3] %}{{ loop.changed(a) }}{{ loop.first }}{{ loop.index0 }}{{ loop.revindex0 }}{{ loop.depth0 }}{% endfor %}",
    "{% for loop in [1] %}{% endfor %}",
    "{% for i in [1] %}{% set loop = 1 %}{% endfor %}",
    "{% set loop = 3 %}{{ loop }}",
    "{% for a in [1, 2] %}{{ loop }}{% endfor %}",
    "{% for a, b in [(1, 2), (3,)] %}{{ a }}{% endfor %}",
    "{% for i in [1] recursive %}{{ i }}{% else %}{% break %}{% endfor %}",
    "{% macro m(a, b=2, c=a) %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ m(1) }}{{ m(1, c=5) }}{{ m() }}{{ m.name }}{{ m.arguments }}",
    "{% macro m(a) %}{{ a }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, 3, x=4) }}{{ m(*[1, 2], **{'z': 3}) }}",
    "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}",
    "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(b=1) }}",
    "{% macro m(a=1, b) %}{% endmacro %}",
    "{% macro m(x) %}{{ x }}{{ caller() }}{{ caller('z') if false }}{% endmacro %}{% call m(1) %}in{% endcall %}{% call m(2) %}{{ x }}{% endcall %}",
    "{% macro m() %}{{ caller }}{% endmacro %}{{ m() }}",
    "{% macro m() %}a{% endmacro %}{% call m() %}b{% endcall %}",
    "{% call 1 %}{% endcall %}",
    "{% macro m(n) %}{{ n }}{% if n > 0 %}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(9) }}",
    "{% macro m(a, a) %}{% endmacro %}",
    "{{ m(1) }}{% macro m(a) %}{% endmacro %}",
    "{% with a = 1, b = 2 %}{{ a + b }}{% set c = 3 %}{% endwith %}{{ a is defined }}{{ c is defined }}",
    "{% with %}{{ bos_token }}{% endwith %}",
    "{% filter upper | replace('A', 'b') %}abc{{ 'd' }}{% endfilter %}",
    "{% set x | upper %}a{{ 1 }}b{% endset %}{{ x }}",
    "{% filter nofilter %}{% endfilter %}",
    "{% set x %}{% set y = 1 %}{{ y }}{% endset %}{{ x }}{{ y is defined }}",
    "{% print 1, 'a' %}",
    "{% print %}",
    "{% do 1 %}",
    "{% unknown %}",
    "{% if 1 %}a{% elif 2 %}b{% else %}c{% endif %}{% if nothing %}d{% elif [] %}e{% elif 0.0 %}f{% endif %}",
    "{% if %}{% endif %}",
    "{% endif %}",
    "{% if 1 %}",
    "{% if false %}{{ x | nofilter }}{% endif %}ok",
    "{{ (x | nofilter) if false else 'ok' }}",
    "{% macro m() %}{{ x | nofilter }}{% endmacro %}",
    "{% if false %}{{ 1 is notest }}{% endif %}ok",
    "{% generation %}{% set a = 1 %}{{ a }}{{ bos_token }}{% endgeneration %}{{ a is defined }}",
    "{%- generation -%} a {%- endgeneration -%} b",
    "{% generation %}",
    "{% for i in [1] %}{% generation %}{% break %}{% endgeneration %}{% endfor %}",
    "{% break %}",
    "{% for i in [1, 2] %}{% set x %}{{ i }}{% break %}{% endset %}{% endfor %}{{ x is defined }}",
    "{{ x.y }}",
    "{{ x.y.z }}",
    "{{ messages[0].zz.y }}",
    "{{ nothing() }}",
    "{{ nothing + 1 }}",
    "{{ nothing ~ 1 }}",
    "{{ nothing | length }}",
    "{{ nothing == nothing2 }}",
    "{{ -nothing }}",
    "{{ raise_exception('no') }}",
    "{{ raise_exception() }}",
    "{{ dict(a=1, b=2) }}{{ dict([('x', 1)]) }}{{ dict({'a': 1}, c=2) }}{{ dict.fromkeys('ab') }}",
    "{{ dict.update({}) }}",
    "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.current }}{{ c.next() }}{{ c.reset() }}{{ c.current }}",
    "{% set j = joiner('|') %}{{ j() }}{{ j() }}a{{ j() }}",
    "{{ cycler() }}",
    "{{ range(3) }}{{ range(1, 9, 2) | list }}{{ range(3) | length }}{{ 2 in range(3) }}{{ range(10)[2] }}{{ range(0, 1, 0) }}",
    "{{ range(100001) }}",
    "{{ range('a') }}",
    "{{ lipsum() }}",
    "{{ range(100000) | sum }}",
    "{{ [1, 2] == (1, 2) }}{{ 1 == 1.0 }}{{ 1 == true }}{{ {1: 2} == {true: 2.0} }}{{ {1: 'a', 1.0: 'b', true: 'c'} }}{{ 'a' < 'b' }}{{ [1, 2] < [1, 3] }}{{ none == none }}",
    "{{ {[]: 1} }}",
    "{{ 1 < 'a' }}",
    "{{ '😀' | length }}{{ '😀a'[1] }}{{ '😀a' | reverse }}{{ '\uffff' < '😀' }}{{ 'a😀b'.find('b') }}{{ '😀'.center(5, 'é') }}{{ ['😀', '\uffff'] | sort }}",
    "{{ ['a\\n', \"it's\", '\"q\"', 'é\\x00\\x7f\\xa0\\u200b😀', '\\\\'] }}",
    "{{ {'é': 'a\\n\\x01\\x7f\"/', 'b': 1e20, 'c': [true, none, 0.1]} | tojson }}{{ {'a': {}, 'b': [], 'c': [[1]]} | tojson(indent=1) }}",
    "{{ {1: 2, none: 3, true: 4, 1.5: 5} | tojson }}",
    "{{ nothing | tojson }}",
    "{{ {(1, 2): 3} | tojson }}",
    "{{ [1, (2, 3)] | tojson(separators=('; ', '=')) }}{{ 'é😀' | tojson(ensure_ascii=true) }}",
    "{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, indent='--') }}",
    "{{ [{'a': {'b': 1}}, {'a': {'b': 2}}] | map(attribute='a.b') | list }}{{ [{'x': 1}, {}] | map(attribute='x', default='D') | list }}{{ [[1, 2], [3, 4]] | map(attribute=1) | list }}{{ ['a'] | map() | list }}",
    "{{ [{'k': 'b', 'n': 1}, {'k': 'A', 'n': 2}, {'k': 'a', 'n': 3}] | sort(attribute='k,n') | map(attribute='n') | join }}{% for k, v in [{'k': 'b'}, {'k': 'B'}, {'k': 'a'}] | groupby('k') %}{{ k }}{{ v | length }}{% endfor %}",
    "{% for g in [{'k': 1, 'v': 2}] | groupby('k') %}{{ g.grouper }}{{ g.list }}{{ g }}{% endfor %}{{ ['a', 'B', 'A', 'b'] | unique | list }}{{ ['a', 'B'] | max }}{{ [] | min is defined }}{{ [{'a': 3}] | sum(attribute='a', start=10) }}{{ ['a'] | sum }}",
    "{{ [1, 2, 3, 4] | select('odd') | list }}{{ [1, 2, 3, 4] | reject('gt', 2) | list }}{{ messages | selectattr('role', 'in', ['user']) | list | length }}{{ messages | rejectattr('content') | list | length }}{{ messages | selectattr('role', 'eq', 'user') | first }}",
    "{{ '<b>' | e ~ '<' }}{{ '<b>' | safe }}{{ '<b>' | e | length }}{{ ('<' | e) in '&lt;' }}{{ ('a' | safe) == 'a' }}{{ ['a' | safe] | join('<') }}{{ 'a' | safe is string }}{{ '<' | e | e }}{{ '<' | e | forceescape }}{{ none | e }}",
    "{{ 2.5 | round }}{{ 3.5 | round }}{{ 2.675 | round(2) }}{{ 1234.5 | round(-2) }}{{ 5 | round(1) }}{{ 2.1 | round(0, 'ceil') }}{{ 0.1 + 0.2 }}{{ 1 / 3 }}{{ 10 / 2 }}{{ -7 // 2 }}{{ -7 % 3 }}{{ 7.5 // -2 }}{{ -7.5 % 2 }}{{ 2 ** -1 }}{{ 4 ** 0.5 }}{{ 10 ** -5 }}",
    "{{ 1e22 }}{{ 1e15 }}{{ 123456789012345678.0 }}{{ 0.00001 }}{{ 0.0001 }}{{ -0.0 }}{{ 1e308 * 10 }}{{ 5e-324 }}{{ 1.0 }}{{ 100000000000000000000.0 }}{{ 1 / 7 * 1e-10 }}",
    "{{ 2 ** 70000 }}",
    "{{ 1 % 0 }}",
    "{{ 1.0 / 0 }}",
    "{{ 10 ** 5000 }}",
    "{{ '0x1F' | int(base=16) }}{{ ' 42 ' | int }}{{ '4_2' | int }}{{ '4.9' | int }}{{ 'x' | int(default=5) }}{{ none | int }}{{ '1e3' | int }}{{ true | int }}{{ '0b11' | int(base=0) }}{{ 'inf' | float }}{{ ' 1_0.5 ' | float }}{{ 'x' | float }}{{ 3 | float }}",
    "{{ nothing | int }}",
    "{{ nothing | float }}",
    "{{ messages[0] is sameas messages[0] }}{{ [] is sameas [] }}",
    "{{ messages | length > 0 and messages[0].role is string }}",
    "{{ strftime_now('%Y-%m-%d %A %B %j %U %V') }}",
    "{{ strftime_now() }}",
    "{% include 'x' %}",
    "{% extends 'x' %}",
    "{{ caller }}{{ varargs }}|{{ loop is defined }}{{ self is defined if false }}",
    "{{ 'a' if 'x' is filter else 'b' }}{{ 'upper' is filter }}{{ 'odd' is test }}",
    "{{ [1,2,3][5] is defined }}{{ 'abc'[10] is defined }}",
    "{{ (messages | map(attribute='role') | list)[0] }}",
    "{% set x = messages | map(attribute='role') %}{{ x | first }}{{ x | list | length }}",
    "{% for x in [1, 2, 3] | map('string') %}{{ loop.length }}{{ x }}{{ loop.last }}{% endfor %}",
    "{{ foo.bar if foo is defined else 'no' }}{{ (foo | default({})).bar | default('x') }}{{ messages[5] is defined }}{{ messages[-1].content | default('none', true) }}",
    "{{ '%s' | format('a') }}{{ '%(x)s' | format(x=1) }}{{ 'a' | center }}|",
    "{{ 'abc' | first }}{{ 'abc' | last }}{{ 'abc' | list }}{{ {'a': 1} | first }}{{ {'a': 1, 'b': 2} | last }}{{ {'a': 1} | length }}",
    "{{ 'hello world-foo (bar) [x]' | title }}{{ \"it's a-b\".title() }}{{ 'ÀÉ'.lower() }}{{ 'straße'.upper() }}{{ 'İ'.lower() }}{{ 'ΑΣ'.lower() }}{{ 'x\\u2028y\\x1cz\\x85w'.splitlines() }}{{ '\\x1c a\\xa0'.strip() }}{{ '\\ufeffa'.strip() | length }}",
]


def expressions() -> list[str]:
    """Return templates that each print one or more expressions."""
    chains = [f"{{{{ ({value}) | {name} }}}}" for value in VALUES for name in FILTERS]
    chains += [f"{{{{ ({value}) is {name} }}}}" for value in VALUES for name in TESTS]
    chains += [f"{{{{ ({value}).{name} }}}}" for value in VALUES for name in METHODS]
    chains += [f"{{{{ ({value}){name} }}}}" for value in VALUES for name in SUBSCRIPTS]
    chains += [f"{{{{ ({left}) {each} ({right}) }}}}" for each in OPERATORS for left in VALUES for right in VALUES]
    return [*SYNTAX, *(f"{{{{ {each} }}}}" for each in [*VALUES, *PRINTF, *FORMATS]), *chains]
