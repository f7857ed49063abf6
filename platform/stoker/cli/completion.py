"""Print a completion script: stoker completion bash|zsh

    eval "$(stoker completion bash)"      in ~/.bashrc
    eval "$(stoker completion zsh)"       in ~/.zshrc, after compinit

It completes commands, options and their choices, and after train the keys of a recipe. The script holds all words, so
that completing starts no Python; print it again after an upgrade.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from stoker.cli.commands import COMMANDS, JOBS

__all__ = ["add_arguments", "run"]

_FUNCTION = """\
_stoker() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD-1]}}"
    local command="${{COMP_WORDS[1]}}" words="" actions="" first=2 i is_value=
    COMPREPLY=()
    if [[ $COMP_CWORD -ge 3 && ( $current == "=" || $previous == "=" ) ]]; then  # bash breaks words at =
        is_value=1
        if [[ $current == "=" ]]; then
            current=""
        else
            previous="${{COMP_WORDS[COMP_CWORD-2]}}"
        fi
    fi
    if [[ $COMP_CWORD -eq 1 ]]; then
        COMPREPLY=($(compgen -W "{commands} --help --version" -- "$current"))
        return
    fi
    if [[ $command == submit ]]; then
        for ((i = 2; i < COMP_CWORD; i++)); do
            case "${{COMP_WORDS[i]}}" in
                {jobs}) command="${{COMP_WORDS[i]}}"; first=$((i + 1)); break ;;
            esac
        done
    fi
    case "$command $previous" in
{choices}
    esac
    if [[ -z $words && -z $is_value ]]; then
        case "$command" in
{words}
        esac
        if [[ $command == train && $COMP_CWORD -gt $first ]]; then
            words="$words {keys}"
        elif [[ $command == train && $current != -* ]]; then
            words=""
        fi
        for ((i = first; i < COMP_CWORD; i++)); do
            [[ " $actions " == *" ${{COMP_WORDS[i]}} "* ]] && actions=""
        done
        words="$words $actions"
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
    if [[ "${{COMPREPLY[0]-}}" == *= ]] && type compopt > /dev/null 2>&1; then
        compopt -o nospace 2> /dev/null
    fi
}}
complete -o default -F _stoker stoker
"""
_ZSH = "autoload -U +X bashcompinit && bashcompinit\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh"), help="the shell to complete in")


def run(given: argparse.Namespace) -> None:
    script = f"# Completion of stoker for {given.shell}, printed by stoker completion {given.shell}.\n"
    print(script + (_ZSH if given.shell == "zsh" else "") + completion_script(), end="")


def completion_script() -> str:
    """The function for bash, which zsh's bashcompinit runs as well."""
    parsers = {name: command.parser() for name, command in COMMANDS.items()}
    choices = "\n".join(
        f'        "{name} {option}") words="{" ".join(values)}" ;;'
        for name, parser in parsers.items()
        for option, values in _choices(parser)
    )
    words = "\n".join(
        f'            {name}) words="{" ".join(_options(parser))}" actions="{" ".join(_actions(parser))}" ;;'
        for name, parser in parsers.items()
    )
    keys = " ".join(f"{key}=" for key in recipe_keys())
    return _FUNCTION.format(commands=" ".join(COMMANDS), jobs="|".join(JOBS), choices=choices, words=words, keys=keys)


def recipe_keys() -> list[str]:
    """Every dotted key of a recipe that has a value of its own, as ``optimizer.lr``; from the JSON Schema."""
    from stoker.recipe import json_schema

    schema = json_schema()
    definitions = schema.get("$defs", {})

    def section_of(field: dict[str, object]) -> dict[str, object] | None:
        options = [field, *field.get("anyOf", []), *field.get("allOf", [])]  # type: ignore[misc]
        for option in options:
            name = str(option.get("$ref", "")).removeprefix("#/$defs/")
            if name in definitions and "properties" in definitions[name]:
                return dict(definitions[name])
        return None

    def keys_of(section: dict[str, object], prefix: str) -> Iterator[str]:
        properties = section["properties"]
        assert isinstance(properties, dict)
        for name, field in properties.items():
            below = section_of(field)
            if below is None:
                yield prefix + name
            else:
                yield from keys_of(below, f"{prefix}{name}.")

    return list(keys_of(schema, ""))


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from (option for option in action.option_strings if option.startswith("--"))
    yield "--debug"


def _actions(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The words of which one stands first: subcommands, jobs, shells."""
    for action in parser._actions:
        if not action.option_strings and action.choices is not None:
            yield from (str(choice) for choice in action.choices)


def _choices(parser: argparse.ArgumentParser) -> Iterator[tuple[str, list[str]]]:
    for action in parser._actions:
        for option in action.option_strings:
            if action.choices is not None and option.startswith("--"):
                yield option, [str(choice) for choice in action.choices]
