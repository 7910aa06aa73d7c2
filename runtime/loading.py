"""From a bundle's folder to a session."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgellm.devices.memory import give_back
from edgellm.runtime.backend import Backend
from edgellm.runtime.bundle_files import AGAIN, CHAT_TEMPLATE, NAME, TABLES
from edgellm.runtime.cache import CacheLayout, cache_layout
from edgellm.runtime.errors import BundleError, EdgellmError, UsageError
from edgellm.runtime.kv_policy import KVPolicy, kv_policy, parse_kv
from edgellm.runtime.manifest import read_manifest
from edgellm.runtime.schema import EngineFacts, Manifest
from edgellm.runtime.session import Session
from edgellm.runtime.tokenizer import TextTokenizer, read_tokenizer

if TYPE_CHECKING:
    from edgellm.runtime.chat import Chat

CHUNK = 256  # tokens a prefill run: the staging area's size


def load(
    path: str | Path,
    kv: str | None = None,
    threads: int | None = None,
    verify: bool = False,
    manifest: Manifest | None = None,
    backend: str = "cpu",
) -> Session:
    """Load a bundle from its folder.

    kv: instead of the bundle's policy, as edgellm.runtime.kv_policy.parse_kv reads it: "full", "vatp:512", … threads:
    default, the physical cores this process may use. verify: hash the weights too. manifest: taken as it is and no file
    is checked (export, before it writes one). backend: "cpu"; "onnxruntime", ONNX Runtime on the CPU
    whatever the graph is; or "tensorrt" for the bundle's engine, whose policy is full by default.
    Raises BundleError for anything wrong with the files, UsageError for arguments, EdgellmError for the library.
    """
    folder = Path(path)
    manifest = manifest or read_manifest(folder, verify)
    model = manifest.model
    if kv is None and backend == "tensorrt" and manifest.engine:
        kv = _engines_policy(manifest, manifest.engine)
    policy = _default_policy(manifest) if kv is None else parse_kv(kv, model.context, manifest.kv.budgets)
    layout = cache_layout(manifest, policy, min(CHUNK, model.context))
    tokenizer = read_tokenizer(folder, model.vocabulary, TABLES in manifest.files)
    runs = _backend(folder, manifest, layout, threads, backend)
    give_back()  # reading all of a tokenizer.json of 262k tokens leaves 200 MB behind
    return Session(manifest, tokenizer, runs, policy, layout.staging, lambda: _read_chat(folder, manifest, tokenizer))


def _backend(folder: Path, manifest: Manifest, layout: CacheLayout, threads: int | None, kind: str) -> Backend:
    """What runs the bundle's graph; imported late, so that a wrong bundle is told before onnxruntime is loaded."""
    if kind == "tensorrt":
        from edgellm.runtime.tensorrt_backend import tensorrt_backend

        return tensorrt_backend(folder, manifest, layout)
    if manifest.graph == "optimum":
        from edgellm.runtime.standard_backend import StandardBackend

        return StandardBackend(folder, layout, manifest.model.vocabulary, threads)
    from edgellm.runtime.cpu_backend import CpuBackend

    onnx = kind == "onnxruntime"
    return CpuBackend(folder, layout, manifest.model.vocabulary, threads, manifest.matrices, onnx)


def _engines_policy(manifest: Manifest, engine: EngineFacts) -> str | None:
    """A full cache of the size that the engine has; None, the bundle's policy, where its plugins evict."""
    if engine.operators == "plugins" and manifest.kv.policy != "full":
        return None
    staging = engine.tokens if engine.operators == "plugins" else 0
    return f"full:{min(engine.capacity - staging, manifest.model.context)}"


def _default_policy(manifest: Manifest) -> KVPolicy:
    default = manifest.kv
    try:
        if len(default.budgets) not in (0, manifest.model.layers):
            raise UsageError(f'"kv.budgets" has {len(default.budgets)} budgets for {manifest.model.layers} layers')
        return kv_policy(default.policy, default.budget, manifest.model.context, default.budgets, **default.settings())
    except UsageError as error:
        raise BundleError(f"{NAME}: {error.what}", AGAIN) from None


def _read_chat(folder: Path, manifest: Manifest, tokenizer: TextTokenizer) -> Chat | None:
    """Compile the template and render the frozen samples again."""
    from edgellm.runtime.chat import Chat  # late: jinja2 is slow to import

    if not manifest.has_chat_template:
        return None
    try:
        template = (folder / CHAT_TEMPLATE).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{CHAT_TEMPLATE} cannot be read: {error}", AGAIN) from None
    tokens = manifest.tokens
    named = {"bos_token": tokens.bos, "eos_token": tokens.eos}
    special = {name: tokenizer.id_to_token(token) for name, token in named.items() if token is not None}
    chat = Chat(template, {name: text for name, text in special.items() if text is not None})
    for number, sample in enumerate(manifest.chat.samples if manifest.chat else [], 1):
        try:
            text = chat.render(sample.messages, now=manifest.created_at)
        except EdgellmError as error:
            raise BundleError(f"{CHAT_TEMPLATE}: sample {number}: {error.what}", AGAIN) from None
        if tokenizer.encode(text, add_special_tokens=False).ids != sample.ids:
            raise BundleError(
                f"{CHAT_TEMPLATE} renders sample conversation {number} to other token ids than at export",
                f"Compare the versions of jinja2 and tokenizers with the exporting machine's. {AGAIN}",
            )
    return chat
