"""Keeps notices of TorchRec out of the logs that say nothing to anyone here; all else stays."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# Logger → beginnings of the notices: how process groups were cut, and that copied tables have
# neither caches nor sharding specs.
_NOTICES = {
    "": ("Sharding spec not found for",),
    "torchrec.distributed.comm": ("TORCHREC_RESOLVED_POD_SIZE not set", "[Connection]"),
    "torchrec.distributed.utils": ("Sharding Type is data_parallel, caching params",),
}
# TorchRec's own use of names and types that torch changes; and the CPU kernel of copied tables,
# which differentiates itself although torch cannot see that (their gradients are tested).
_WARNINGS = (
    r"`broadcast_buffers` is deprecated",
    r"Please use DTensor instead and we are deprecating ShardedTensor",
    r"`torch.distributed.(reduce_scatter_tensor|all_gather_into_tensor)` is deprecated",
    r"fbgemm::dense_embedding_codegen_lookup_function: an autograd kernel was not registered",
)


@contextmanager
def quiet_torchrec() -> Iterator[None]:
    """Drops these notices while a model is planned and sharded, and these warnings from then on."""
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    filters = [(logging.getLogger(name), _Without(starts)) for name, starts in _NOTICES.items()]
    for logger, without in filters:
        logger.addFilter(without)
    try:
        yield
    finally:
        for logger, without in filters:
            logger.removeFilter(without)


class _Without(logging.Filter):
    def __init__(self, starts: tuple[str, ...]) -> None:
        super().__init__()
        self._starts = starts

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self._starts)
