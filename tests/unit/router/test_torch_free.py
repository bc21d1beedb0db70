import subprocess
import sys

HEAVY = ("torch", "transformers", "sklearn", "triton", "fakeredis")


def test_the_gateway_imports_without_torch_transformers_and_sklearn() -> None:
    program = (
        f"import sys, router.app, router.server, router.cli\nprint([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
