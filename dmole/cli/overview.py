"""What ``dmole --help`` prints."""

HELP = """\
usage: dmole VERB ...

Continual multimodal learning: a sequence of image-text tasks without forgetting.

  fit       --config FILE [--config FILE ...] [--key value ...]
            learn the sequence: experts, router, evaluation matrix, figures
  add       RUN --name TASK --train FILE --test FILE [--image_root DIR] [--metric M] [--key value]
            RUN --update TASK --train FILE [--test FILE] [--key value]
            one more task after those of a finished run, or new data of one of them, learned in a
            new run folder beside it
  plan      --config FILE ... [--gpu NAME] [--devices N] [--memory_gib X] [--json FILE]
            memory of each phase, disk and hours of fit on a GPU, before it is started, and what to
            change where it does not fit; fit --dry_memory does the same
  allocate  --config FILE ...
            dry run: proxy scores, budgets and where experts would go
  evaluate  RUN [--split test|train] [--threshold_scale X] [--output DIR] [--key value ...]
            the matrix of a finished run again, on other data or with other thresholds
            RUN --router NAME [NAME ...]
            routers side by side on the experts of the run, none of which is trained
  predict   RUN --image FILE --prompt TEXT  |  RUN --input FILE.json
            answers, with the experts that gave them
            RUN --input BENCHMARK.tsv --vlmevalkit DIR [--model_name NAME] [--xlsx]
            predictions as VLMEvalKit's evaluation reads them
  watch     RUN --input FILE|- [--window N] [--limit X] [--json]
            route prompts in order and report tasks that no expert has learned; - reads them from
            standard input as they arrive
  bundle    RUN OUT [--license L] [--base org/name] [--data_source TASK=TEXT ...]
            experts, router and model card of a finished run, as a folder that is safe to publish
  push      RUN|BUNDLE org/name [--private] [--license L] ...
            a bundle as a repository of the hub; dmole.load("hf://org/name") reads it
  merge     RUN|BUNDLE OUT --experts a[+b] [--dtype D] [--base FOLDER]
            plain weights of base model and experts, which transformers loads alone
  export    RUN OUT --for vllm [--base NAME]
            adapters for vLLM: one for each expert and for each set of experts that occurs
  route-proxy EXPORT --upstream http://host:port/v1 [--base FOLDER] [--port N]
            chooses the adapter of each chat completion and passes it on to vLLM
  serve     RUN [--port N] [--api_key KEY] [--watch] ...
            an OpenAI-compatible endpoint with a chat page; new experts join while it runs
  compare   RUN [RUN ...] [--output DIR] [--allow data,base,...] [--counterparts]
            [--reference METHOD]
            tables (Markdown, CSV, LaTeX) and pictures of several runs, seeds grouped by method
  report    RUN [RUN ...] [--output FILE]
            one HTML page of a run, or of several side by side: scores, experts, routing, costs
  data make-example DIR [--alike | --one_wording | --photographs] [--package FILE.deb]
            real images of installed packages as tasks, for configs/real.yaml; with --alike, six
            tasks in one wording, for configs/benchmarks/alike_real.yaml; with --one_wording, eight
            about photographs, for configs/benchmarks/one_wording_real.yaml; with --photographs,
            six about photographs, for configs/photographs.yaml
  data check --config FILE ... [--json FILE] [--processes N] [--items N] [--no_images] [--no_tokens]
            check every item, image, length and reference of the tasks' files before training
  data export-tasks OUT --config FILE ... [--prefix P]
            the test samples of a config as tasks of lmms-eval, scored as dmole scores them
  data init BENCHMARK DIR [--miniature]
            the folders of a benchmark, and where to obtain what goes there; `data init --help`
            names the benchmarks
  score     PREDICTIONS --task TASK | --metric NAME [--of TASK_OF_RUN] [--references FILE]
            [--profile P] [--json]
            score a file of predictions as the benchmark's authors do, and without their quirks
  experts   RUN list | remove NAME | rename OLD NEW | disable NAME | enable NAME
            RUN import FROM_RUN NAME  |  RUN import --from_adapter DIR --as NAME --samples FILE
            the experts of a run; a new run without one of them, or with one from elsewhere
  configs   [NAME]
            the configs that ship with the package, or the content of one, to copy and change
  completion bash|zsh
            a script that completes verbs, settings and configs: source <(dmole completion bash)

  dmole fit --help         every setting, with its default
  dmole fit --config quickstart.yaml --print_config
  dmole --version

  --trust_classes MODULE[,MODULE]
            after any verb with a config or a run: these may name classes of your own modules

TensorBoard: tensorboard --logdir runs
"""
