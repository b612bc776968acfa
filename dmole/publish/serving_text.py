"""The page of an export: the command lines that serve it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from dmole.messages import visible


def serving_text(
    title: str, base: str, adapters: Mapping[str, tuple[str, ...]], max_rank: int
) -> str:
    """Return the page of an export.

    Args:
        title: Name of its folder.
        base: Name or folder of the base model.
        adapters: Experts of each adapter, by its name.
        max_rank: Value of ``--max-lora-rank``.
    """
    rows = [f"| `{name}` | {', '.join(experts)} |" for name, experts in adapters.items()]
    quoted = shlex.quote(visible(base))
    return _TEXT.format(title=title, base=quoted, rank=max_rank, rows="\n".join(rows))


_TEXT = """\
# {title}

Adapters of a run of dmole for vLLM, and the router that chooses between them.

| adapter | experts |
|---|---|
{rows}

Start vLLM beside this folder. `--enable-tower-connector-lora` is needed: without it vLLM leaves out
the part of an adapter that is in the vision encoder, and says nothing.

```sh
VLLM_PLUGINS=lora_filesystem_resolver \\
VLLM_LORA_RESOLVER_CACHE_DIR=$PWD/adapters \\
VLLM_ALLOW_RUNTIME_LORA_UPDATING=True \\
vllm serve {base} \\
  --enable-lora --enable-tower-connector-lora --max-lora-rank {rank}
```

The base model must be given in exactly this form, since the resolver compares it with the adapters.
An adapter is the `model` of a request. The router chooses it for each request:

```sh
dmole route-proxy . --base {base} --upstream http://127.0.0.1:8000/v1 --port 8001
```
"""
