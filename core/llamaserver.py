"""llama-server's options that are no settings here: those that change nothing, and those that can't be honoured.

Its other options are settings, by the same names (core/settings.py, core/engine/defaults.py, backend.py). So its
command lines start backend.py. Source: common/arg.cpp of llama.cpp, as llama-cpp-python 0.3.36 has it.

    OPTIONS    a Foreign for each, read from the two tables below: names, a star for each value, the reason
"""

from typing import List, Tuple

from core.options import Foreign

_WITHOUT_EFFECT = """
    --jinja --no-jinja                             | chat templates are always Jinja
    -cb --cont-batching -nocb --no-cont-batching   | batches are always continuous
    --metrics                                      | /metrics is always there
    --props                                        | GET /props is always there, and nothing in it can be changed
    --mmap                                         | files are mapped unless --no-mmap says otherwise
    --repack                                       | weights are repacked unless --safe-mode says otherwise
    -kvo --kv-offload                              | the cells are where the layers are
    --op-offload                                   | llama.cpp's default
    --warmup --no-warmup                           | a self-test comes before the first request, always
    --ui --webui --no-ui --no-webui                | a backend has no web page
    --no-ui-mcp-proxy --no-webui-mcp-proxy         | there is none
    -no-ag --no-agent                              | there are no tools on the server
    --ui-config --webui-config *                   | a backend has no web page
    --ui-config-file --webui-config-file *         | a backend has no web page
    --cache-reuse *                                | what is reused is a prompt's beginning, whatever its length
    -cram --cache-ram *                            | the cells of the slots are the cache
    --cache-idle-slots --no-cache-idle-slots       | the cells of the slots are the cache
    -ctxcp --ctx-checkpoints --swa-checkpoints *   | a prompt that can't be taken over in part is evaluated again
    -cms --checkpoint-min-step *                   | a prompt that can't be taken over in part is evaluated again
    -sps --slot-prompt-similarity *                | cells are taken over from any slot
    --swa-full                                     | a prompt that can't be taken over in part is evaluated again
    --threads-http *                               | each connection has a thread
    --log-disable                                  | the log is short; standard error can be sent elsewhere
    --log-file *                                   | the log goes to standard error
    --log-colors *                                 | the log has no colours
    --log-prefix --no-log-prefix                   | the log has no prefix
    --log-timestamps --no-log-timestamps           | the log has no times
    --log-jsonl --no-log-jsonl                     | the log is plain text
    -lv --verbosity --log-verbosity *              | say --verbose to see llama.cpp's log
    --perf --no-perf                               | times are always measured
    --offline                                      | nothing is ever downloaded
    --no-mmproj --no-mmproj-auto                   | images are not supported
    --mmproj-offload --no-mmproj-offload           | images are not supported
    -fit --fit *                                   | memory is planned before a model is loaded
    -fitt --fit-target *                           | memory is planned before a model is loaded
    -fitc --fit-ctx *                              | memory is planned before a model is loaded
    --check-tensors                                | a model has to pass a self-test
    -dt --defrag-thold *                           | llama.cpp has no such thing any more
    -bs --backend-sampling                         | tokens are chosen on the CPU; the answers are the same
    --prio *                                       | the system's default holds
    --prio-batch *                                 | the system's default holds
    --poll *                                       | llama.cpp's default holds
    --poll-batch *                                 | llama.cpp's default holds
    -C --cpu-mask *                                | start it under taskset
    -Cr --cpu-range *                              | start it under taskset
    -Cb --cpu-mask-batch *                         | start it under taskset
    -Crb --cpu-range-batch *                       | start it under taskset
    --cpu-strict *                                 | start it under taskset
    --cpu-strict-batch *                           | start it under taskset
    --numa *                                       | start it under numactl
    --cors-methods *                               | all methods that there are may be used
    --cors-headers *                               | all headers may be sent
    --cors-credentials --no-cors-credentials       | nothing here goes by cookies
    --models-max *                                 | one model is loaded at a time
    --models-autoload --no-models-autoload         | a model is loaded when a request names it
    --reasoning-preserve --no-reasoning-preserve   | the template says which thoughts are told again
    --prefill-assistant                            | a last message of the assistant's is continued, always
    -e --escape --no-escape                        | no option holds a prompt
    -lzm --lazy-mode *                             | llama.cpp's default holds
    --sleep-idle-seconds *                         | a model stays loaded
    --adaptive-decay *                             | adaptive-p is not supported
    --spec-default                                 | --draft-max N guesses ahead from the text so far
"""

_REFUSED = """
    -hf -hfr --hf-repo *                           | nothing is downloaded here; name a file with --model
    -hff --hf-file *                               | nothing is downloaded here; name a file with --model
    -hft --hf-token *                              | nothing is downloaded here; name a file with --model
    -mu --model-url *                              | nothing is downloaded here; name a file with --model
    -dr --docker-repo *                            | nothing is downloaded here; name a file with --model
    --models-preset *                              | a backend has one set of options for all its models
    -mm --mmproj *                                 | images and sound are not supported
    -mmu --mmproj-url *                            | images and sound are not supported
    --mmproj-auto                                  | images and sound are not supported
    --media-path *                                 | images and sound are not supported
    -hfd -hfrd --hf-repo-draft --spec-draft-hf *   | nothing is downloaded here; name a file with --model-draft
    --spec-type *                                  | --draft-max N guesses ahead from the text so far
    --draft-min --draft-n-min --spec-draft-n-min * | say --draft-max N alone: it says how far guesses go
    --tools *                                      | the server runs no tools: they belong to its client
    --tools-runtime *                              | the server runs no tools: they belong to its client
    --mcp-servers-config *                         | the server runs no tools: they belong to its client
    --mcp-servers-json *                           | the server runs no tools: they belong to its client
    -ag --agent                                    | the server runs no tools: they belong to its client
    --ui-mcp-proxy --webui-mcp-proxy               | it would let web pages reach this machine's network
    --path *                                       | a backend serves no files
    --api-prefix *                                 | let a proxy before it take the prefix off
    --reuse-port                                   | two servers on one port would share its requests by chance
    --rpc *                                        | layers on other machines are not supported
    -dev --device *                                | llama.cpp chooses; CUDA_VISIBLE_DEVICES and its like limit it
    -sm --split-mode *                             | llama.cpp chooses; CUDA_VISIBLE_DEVICES and its like limit it
    -ts --tensor-split *                           | llama.cpp chooses; CUDA_VISIBLE_DEVICES and its like limit it
    -mg --main-gpu *                               | llama.cpp chooses; CUDA_VISIBLE_DEVICES and its like limit it
    -ot --override-tensor *                        | only whole layers can be kept off the GPU (--gpu-layers)
    -cmoe --cpu-moe                                | only whole layers can be kept off the GPU (--gpu-layers)
    -ncmoe --n-cpu-moe *                           | only whole layers can be kept off the GPU (--gpu-layers)
    -nkvo --no-kv-offload                          | only whole layers can be kept off the GPU (--gpu-layers)
    --no-op-offload                                | only whole layers can be kept off the GPU (--gpu-layers)
    --no-host                                      | llama.cpp chooses where weights are kept
    -lm --load-mode *                              | say --mlock or --no-mmap
    --reasoning-effort *                           | say it with --chat-template-kwargs, by the template's name for it
    --no-prefill-assistant                         | a last message of the assistant's is continued, always
    --skip-chat-parsing                            | thoughts and tool calls are taken out of the text, always
    --override-kv *                                | a model is used as its file describes it
    --adaptive-target *                            | its choices depend on all before, which no backend could carry on
    --control-vector *                             | control vectors are not supported
    --control-vector-scaled *                      | control vectors are not supported
    --control-vector-layer-range **                | control vectors are not supported
    --rope-scale *                                 | say --rope-freq-scale 1/N
    -l --logit-bias *                              | a request says it ('logit_bias')
    --grammar *                                    | a request says it ('grammar')
    --grammar-file *                               | a request says it ('grammar')
    -j --json-schema *                             | a request says it ('json_schema')
    -jf --json-schema-file *                       | a request says it ('json_schema')
    -r --reverse-prompt *                          | a request says it ('stop')
    -sp --special                                  | special tokens are not shown in answers
    --kv-unified-per-slot *                        | say --ctx-size, which is each slot's
    -lcs --lookup-cache-static *                   | --draft-max N guesses ahead from the text so far
    -lcd --lookup-cache-dynamic *                  | --draft-max N guesses ahead from the text so far
    --log-prompts-dir *                            | what clients ask is not written to disk
    -cl --cache-list                               | nothing is downloaded here, so nothing is kept
    --list-devices                                 | comeapi.py doctor tells whether a GPU can be used
    --completion-bash                              | --help lists all options
"""


def _read(table: str, refuses: bool) -> List[Foreign]:
    """Return the options of a table."""
    options = []
    for line in table.strip().splitlines():
        names, _, why = line.partition("|")
        flags = tuple(word for word in names.split() if word.startswith("-"))
        options.append(Foreign(flags, names.count("*"), why.strip(), refuses))
    return options


OPTIONS: Tuple[Foreign, ...] = tuple(_read(_WITHOUT_EFFECT, False) + _read(_REFUSED, True))
