"""`enable_x64`, imported from the place where the installed version of jax has it."""

try:
    from jax import enable_x64
except ImportError:
    from jax.experimental import enable_x64

__all__ = ["enable_x64"]
