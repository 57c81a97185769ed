"""Private names of jsonargparse."""

# The error of an import that `limit_imports` has refused; without it the sentence names no remedy.
from jsonargparse._common import ImportDenied as ImportDenied

# The settings that `set_parsing_settings` writes; without it they cannot be put back.
from jsonargparse._common import parsing_settings as parsing_settings

# Imports a dotted path under those settings; without it a limit would not hold for our own options.
from jsonargparse._util import import_object as import_object
