"""What cannot be told from a call: choices for the whole process, to be set once at start-up."""

from __future__ import annotations

#: Results of `moe_expert_dispatch`: 6, with `dequant_scale` 7, with `max_tokens_per_expert` 8 (newest).
moe_dispatch_results = 6
