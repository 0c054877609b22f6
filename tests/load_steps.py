"""What steps of llama.cpp cost on this processor: by their rows, and by how much text is in the cells.

    python tests/load_steps.py MODEL.gguf           milliseconds of one thread's processor time; best of three

Processor time, not time by the clock: so the figures hold beside other work, too, as far as that leaves the caches
alone. `rows` are those of a prompt, of which only the last wants logits; `streams` are rows that all want them, as
those of streams do. With flash attention off and on, at each depth.
"""

import os
import sys
import time

import llama_cpp

ROWS = (1, 2, 4, 8, 12, 15, 16, 17, 24, 31, 32, 48, 64, 128, 256)
STREAMS = (1, 2, 4, 8, 12, 16)
DEPTHS = (0, 250, 1000, 2000, 4000)
OFF, ON = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED, llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED


class Bench:
    """A context of one thread and one sequence."""

    def __init__(self, model, attention):
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = max(DEPTHS) + 512, 512, 512, 1
        params.n_threads = params.n_threads_batch = 1
        params.flash_attn_type = attention
        self._context = llama_cpp.llama_init_from_model(model, params)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = llama_cpp.llama_batch_init(512, 0, 1)
        self._depth = 0

    def go_down(self, depth):
        """Fill the cells up to a depth."""
        while self._depth < depth:
            rows = min(512, depth - self._depth)
            self._decode(rows, 1)
            self._depth += rows

    def cost(self, rows, logits=1):
        """Return the milliseconds of a step of so many rows, of which the last ones want logits."""
        best = float("inf")
        for _ in range(3):
            best = min(best, self._decode(rows, logits))
            llama_cpp.llama_memory_seq_rm(self._memory, 0, self._depth, -1)
        return best * 1e3

    def _decode(self, rows, logits):
        batch = self._batch
        batch.n_tokens = rows
        for row in range(rows):
            batch.token[row], batch.pos[row] = row * 7919 % 1000 + 10, self._depth + row
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, 0
            batch.logits[row] = row >= rows - logits
        started = time.thread_time()
        if llama_cpp.llama_decode(self._context, batch):
            sys.exit("llama_decode failed")
        return time.thread_time() - started


def main():
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(os.fsencode(sys.argv[1]), llama_cpp.llama_model_default_params())
    benches = {"off": Bench(model, OFF), "on": Bench(model, ON)}
    on = benches["on"]
    print("rows     " + "  ".join("%d: %.0f" % (rows, on.cost(rows)) for rows in ROWS))
    print("streams  " + "  ".join("%d: %.0f" % (rows, on.cost(rows, rows)) for rows in STREAMS))
    for depth in DEPTHS:
        for name, bench in benches.items():
            bench.go_down(depth)
            costs = "  ".join("%d: %.0f" % (rows, bench.cost(rows, min(rows, 4))) for rows in (1, 4, 64))
            print("depth %-5d flash attention %-4s %s" % (depth, name, costs), flush=True)


if __name__ == "__main__":
    main()
