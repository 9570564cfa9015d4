"""What vLLM calls in each of its processes before it reads a configuration (entry point group `vllm.general_plugins`).

Source: vLLM 0.32.0, `plugins/__init__.py`: loading a plugin is guarded there, calling it is not, so that one that raises breaks
the engine for every model of the environment.
"""

import warnings


def register() -> None:
    """Makes vLLM's own LLaVA classes take our towers. It never raises.

    transformers knows our configurations since this package was imported (`sfvlm.registration`), and with them vLLM's transformers
    backend.
    """
    try:
        from .native import install

        install()
    except Exception as error:  # private names of vLLM's, which any release may move
        warnings.warn(
            f"This vLLM's own LLaVA classes cannot take the towers of sfvlm ({type(error).__name__}: {error}): serve such folders "
            "with --model-impl transformers.",
            stacklevel=2,
        )
