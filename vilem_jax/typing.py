"""Names of the types that Python's own cannot say more precisely."""

from typing import Any, TypeAlias

# JAX has no public type for nested containers of arrays; optax and Flax use Any too.
PyTree: TypeAlias = Any
# An object as `json.loads` returns it: its values are nested, of any JSON type.
JsonObject: TypeAlias = dict[str, Any]
