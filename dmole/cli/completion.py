"""``dmole completion``: a script that completes verbs, settings and configs in a shell."""

from __future__ import annotations

from dmole.cli.arguments import ArgumentParser
from dmole.cli.config_files import shipped_configs

SHELLS = ("bash", "zsh")

_SCRIPT = """\
# completion of dmole for {shell}; load it with: source <(dmole completion {shell})
{start}_dmole() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" last="${{COMP_WORDS[COMP_CWORD-1]}}"
  local verbs="{verbs}"
  local configs="{configs}"
  local settings="{settings}"
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "$verbs" -- "$word"))
  elif [ "$last" = --config ] || [ "$last" = -c ]; then
    COMPREPLY=($(compgen -W "$configs" -- "$word") $(compgen -f -- "$word"))
  elif [ "${{word#-}}" != "$word" ]; then
    COMPREPLY=($(compgen -W "$settings" -- "$word"))
  elif [ "${{COMP_WORDS[1]}}" = configs ]; then
    COMPREPLY=($(compgen -W "$configs" -- "$word"))
  else
    COMPREPLY=($(compgen -f -- "$word"))
  fi
}}
complete -o filenames -F _dmole dmole
"""


def run_completion(words: list[str], verbs: list[str]) -> None:
    """Print a script that completes the command line of dmole."""
    from dmole.cli.lightning import setting_names

    parser = ArgumentParser("dmole completion", description=run_completion.__doc__)
    parser.add_argument("shell", choices=SHELLS)
    shell = parser.parse_args(words).shell
    print(completion_script(shell, verbs, setting_names()), end="")


def completion_script(shell: str, verbs: list[str], settings: list[str]) -> str:
    """Return the script of a shell.

    Args:
        shell: ``bash``, or ``zsh``, which runs the same script in its bash mode.
        verbs: Verbs of the command line.
        settings: Dotted names of the settings of ``fit``.
    """
    return _SCRIPT.format(
        shell=shell,
        start="autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else "",
        verbs=" ".join(verbs),
        configs=" ".join(shipped_configs()),
        settings=" ".join(f"--{name}" for name in settings),
    )
