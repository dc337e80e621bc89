"""Options are documented in `option(default, help)`: the reference shows their help as docstring."""

import ast
from typing import Any

from griffe import Attribute, Docstring, ExprCall, Extension


class OptionHelp(Extension):
    """Reads default and help off `name: type = option(default, "help")`."""

    def on_attribute_instance(self, *, attr: Attribute, **kwargs: Any) -> None:
        """Give an option its default as value, and its help as docstring."""
        value = attr.value
        if not isinstance(value, ExprCall) or str(value.function) != "option":
            return
        default, text, *_ = value.arguments
        attr.value = default
        attr.docstring = Docstring(ast.literal_eval(str(text)), parent=attr)
