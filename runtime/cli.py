"""`edgellm`: a table of verbs. A verb's module is imported when it runs, so `generate` never waits for torch."""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import Any, NoReturn

import click

from edgellm.runtime.errors import EdgellmError, UsageError

VERBS = {
    "export": ("edgellm.export.command:command", "Turn a checkpoint (Hugging Face folder, GGUF) into a bundle."),
    "build-engine": (
        "edgellm.runtime.commands.build_engine:command",
        "Build a bundle's TensorRT engine on its device.",
    ),
    "generate": ("edgellm.runtime.commands.generate:command", "Continue a prompt."),
    "chat": ("edgellm.runtime.commands.chat:command", "Talk with the model."),
    "cache-prompt": ("edgellm.runtime.commands.cache_prompt:command", "Save a prompt's KV cache to a file."),
    "adapt": (
        "edgellm.runtime.commands.adapt:command",
        "Learn from unlabelled questions of one kind; save an adapter.",
    ),
    "adapters": (
        "edgellm.runtime.commands.list_adapters:command",
        "A folder's adapters, and which of them fit a bundle.",
    ),
    "eval": (
        "edgellm.runtime.commands.eval:command",
        "Perplexity of a text, or tasks over long prompts under KV policies.",
    ),
    "bench": ("edgellm.runtime.commands.bench:command", "How fast a bundle is here, and how near to the bound."),
    "inspect": ("edgellm.runtime.commands.inspect:command", "What a bundle holds, and its sizes."),
    "devices": ("edgellm.runtime.commands.devices:command", "Boards that bundles are made for, and this machine."),
    "doctor": ("edgellm.runtime.commands.doctor:command", "Check this machine and installation."),
}
EXPORT_EXTRA = {"torch", "gguf", "onnx", "transformers", "accelerate"}


class Verbs(click.Group):
    """The group over VERBS."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Verbs in the table's order."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a verb's command."""
        if cmd_name not in VERBS:
            return None
        module, name = VERBS[cmd_name][0].split(":")
        command = getattr(import_module(module), name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List verbs from the table: click's own list imports them all."""
        with formatter.section("Commands"):
            formatter.write_dl([(verb, text) for verb, (_, text) in VERBS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Suggest the nearest verb for an unknown one."""
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], VERBS, 1, 0.5)
            guess = f"Did you mean {near[0]}?" if near else f"Verbs: {', '.join(VERBS)}."
            raise UsageError(f'unknown verb "{args[0]}". {guess}', "See edgellm --help.")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run, telling our own errors in words."""
        try:
            return super().invoke(ctx)
        except EdgellmError as error:
            fail(error)
        except ModuleNotFoundError as error:
            missing = (error.name or "").split(".")[0]
            if missing not in EXPORT_EXTRA and not (error.name or "").startswith("edgellm.export"):
                raise
            what = f"export needs {error.name}, which is not installed"
            fail(EdgellmError(what, "Install it: pip install edgellm[export]"))


def fail(error: EdgellmError) -> NoReturn:
    """End with the error on stderr, without a traceback, and its exit code."""
    click.echo(f"error: {error.what}", err=True)
    if error.hint:
        click.echo(error.hint, err=True)
    raise click.exceptions.Exit(error.exit_code)


def tool_version() -> str:
    """The installed version of edgellm, "unknown" for a bare source tree."""
    from importlib.metadata import PackageNotFoundError, version  # late: it takes as long as click itself

    try:
        return version("edgellm")
    except PackageNotFoundError:
        return "unknown"


def _say_version(context: click.Context, parameter: click.Parameter, asked: bool) -> None:
    if asked:
        click.echo(f"edgellm, version {tool_version()}")
        context.exit()


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_say_version,
    help="Show the version and exit.",
)
def main() -> None:
    """Put a language model on a small device: export a bundle, then run it without torch.

    \b
    edgellm export SmolLM2-135M-Instruct.gguf bundle
    edgellm generate bundle --chat -p "What is the capital of France?"
    """
