"""How families write a call of a tool, as data, and which of it a chat template means. Torch-free.

A call in the text is

    opening lead before_name NAME after_name ARGUMENTS end trail closing

where the arguments are a JSON object, or each stands between tags of its own. A format that is
to be known has one value here; how its arguments are read and kept follows from `spelling`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Spelling = Literal["object", "named", "tagged"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArgumentTags:
    """How one argument is written, strings as they are and everything else as JSON:
    `key_opening` KEY `key_closing` `value_opening` VALUE `value_closing`.

    Attributes:
        newline: white space between tags. padding: white space on either side of a value that
            does not belong to it.
    """

    key_opening: str
    key_closing: str
    value_opening: str
    value_closing: str
    newline: str = "\n"
    padding: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """How a family writes a call; the module says in which order.

    Attributes:
        opening, closing: the marks around a call; the opening one is "" where the whole answer
            is one bare call, the closing one where the call's own end ends it.
        spelling: the call is a JSON "object" with its name in it, a name with a JSON object
            ("named"), or a name with arguments between tags ("tagged").
        arguments: the key of the arguments in an "object".
        between: what stands between calls that have marks each.
        separator: what stands between calls that share one pair of marks, None where they do not.
        id_length: letters and digits of a call's id where the template takes no other.
        tags: of the arguments, where they have some. inner_marks: between name and arguments.
    """

    name: str
    spelling: Spelling
    opening: str
    closing: str
    before_name: str
    after_name: str
    end: str = ""
    lead: str = ""
    trail: str = ""
    between: str = "\n"
    separator: str | None = None
    arguments: str = "arguments"
    id_length: int | None = None
    tags: ArgumentTags | None = None
    inner_marks: tuple[str, ...] = ()

    @property
    def marks(self) -> frozenset[str]:
        """What is text of a call even where a tokenizer calls it special."""
        found = {self.opening, self.closing, *self.inner_marks}
        if self.tags is not None:
            tags = self.tags
            found |= {tags.key_opening, tags.key_closing, tags.value_opening, tags.value_closing}
        return frozenset(found - {""})


# Qwen 2.5 and 3, and so Dream, SDAR, Fast-dLLM v2 and A2D; Ling, and so LLaDA 2; SmolLM3.
HERMES = ToolFormat(
    name="hermes",
    spelling="object",
    opening="<tool_call>",
    closing="</tool_call>",
    lead="\n",
    before_name='{"name": "',
    after_name='", "arguments": ',
    end="}",
    trail="\n",
)
# Llama 3.1 and later: one call, and nothing else in the answer.
BARE_JSON = ToolFormat(
    name="bare_json",
    spelling="object",
    opening="",
    closing="",
    before_name='{"name": "',
    after_name='", "parameters": ',
    end="}",
    arguments="parameters",
)
_GLM_TAGS = ArgumentTags(
    key_opening="<arg_key>",
    key_closing="</arg_key>",
    value_opening="<arg_value>",
    value_closing="</arg_value>",
)
# GLM 4.5 and 4.6.
GLM = ToolFormat(
    name="glm",
    spelling="tagged",
    opening="<tool_call>",
    closing="</tool_call>",
    before_name="",
    after_name="\n",
    tags=_GLM_TAGS,
)
# GLM 4.7: the same in one line.
GLM_COMPACT = ToolFormat(
    name="glm_compact",
    spelling="tagged",
    opening="<tool_call>",
    closing="</tool_call>",
    before_name="",
    after_name="",
    between="",
    tags=ArgumentTags(
        key_opening="<arg_key>",
        key_closing="</arg_key>",
        value_opening="<arg_value>",
        value_closing="</arg_value>",
        newline="",
    ),
)
# Qwen3-Coder, and Qwen from 3.5 on.
QWEN_CODER = ToolFormat(
    name="qwen_coder",
    spelling="tagged",
    opening="<tool_call>",
    closing="</tool_call>",
    lead="\n",
    before_name="<function=",
    after_name=">\n",
    end="</function>",
    trail="\n",
    tags=ArgumentTags(
        key_opening="<parameter=",
        key_closing=">",
        value_opening="",
        value_closing="</parameter>",
        padding="\n",
    ),
)
# Mistral's up to the tokenizer's version 7: a list after one mark.
MISTRAL_LIST = ToolFormat(
    name="mistral_list",
    spelling="object",
    opening="[TOOL_CALLS]",
    closing="",
    lead="[",
    before_name='{"name": "',
    after_name='", "arguments": ',
    end="}",
    trail="]",
    separator=", ",
    id_length=9,
)
# Mistral's from version 11 on: a mark for each. Version 11 alone writes `[CALL_ID]` and an id
# behind the name in what it is told of a chat; that is read, and not written where a call is
# forced, as Mistral's own grammar (mistral-common) has none in any version.
MISTRAL = ToolFormat(
    name="mistral",
    spelling="named",
    opening="[TOOL_CALLS]",
    closing="",
    before_name="",
    after_name="[ARGS]",
    between="",
    id_length=9,
    inner_marks=("[ARGS]", "[CALL_ID]"),
)
FORMATS = (HERMES, BARE_JSON, GLM, GLM_COMPACT, QWEN_CODER, MISTRAL_LIST, MISTRAL)

# What a template has that teaches a format, the most telling first: formats share marks. None
# is a form that has marks of ours and that we cannot read: its model is told of ours in words.
_TRACES: tuple[tuple[ToolFormat | None, str], ...] = (
    (GLM_COMPACT, r"<tool_call>[^<\n]*<arg_key>"),
    (GLM, r"<arg_key>"),
    (None, r"<tool_calls>|<seed:tool_call>"),
    (QWEN_CODER, r"<parameter="),
    (None, r"<function="),
    (MISTRAL, r"\[ARGS\]"),
    (MISTRAL_LIST, r"\[TOOL_CALLS\]"),
    (HERMES, r"<tool_call>"),
    (None, r'"tool_name"'),
    (BARE_JSON, r'tool_calls\b(?s:.)*"parameters": |"parameters": (?s:.)*tool_calls\b'),
)
_DESCRIBES_TOOLS = r"\{%-?\s*(?:if|elif|for)\b[^%]*\btools\b"


def tools_of_template(template: str) -> tuple[bool, ToolFormat]:
    """Whether a template describes tools, in a form that we can read, and that form."""
    if re.search(_DESCRIBES_TOOLS, template):
        form = next((form for form, trace in _TRACES if re.search(trace, template)), None)
        if form is not None:
            return True, form
    return False, HERMES
