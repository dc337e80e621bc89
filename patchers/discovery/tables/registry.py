"""The forms that `discover` knows: those of the tables, and those that a user registers for a model of their own."""

from patchers.discovery.tables.attention import ATTENTION_FORMS
from patchers.discovery.tables.ffn import FFN_FORMS
from patchers.discovery.tables.forms import AttentionForm, FfnForm

Form = AttentionForm | FfnForm
_REGISTERED: list[Form] = []


def register_form(form: Form) -> None:
    """Teach `discover` the naming of a private model; it is tried before the built-in ones.

    Registering an equal form twice does nothing.
    """
    if form not in _REGISTERED:
        _REGISTERED.append(form)


def attention_forms() -> tuple[AttentionForm, ...]:
    """Return the forms of attention in the order in which they are tried."""
    return (*(form for form in _REGISTERED if isinstance(form, AttentionForm)), *ATTENTION_FORMS)


def ffn_forms() -> tuple[FfnForm, ...]:
    """Return the forms of feed-forward modules in the order in which they are tried."""
    return (*(form for form in _REGISTERED if isinstance(form, FfnForm)), *FFN_FORMS)
