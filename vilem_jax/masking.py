"""The logit of what may not be chosen."""

# Finite, so that no gradient becomes NaN; exp() of it is exactly 0 in float32 and in
# bfloat16.
NEG_INF = -1e30
