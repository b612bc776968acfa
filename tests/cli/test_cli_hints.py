from __future__ import annotations

import pytest

from dmole.cli.hints import explain
from dmole.cli.main import main

SETTINGS = ["data.batch_size", "model.alpha", "model.optimizer", "trainer.name"]
UNION = """Parser key "trainer.stream":
  - Expected a path but nonsense either not accessible or invalid
  - Does not validate against any of the Union subtypes
    Subtypes: [<class 'dmole.streams.stream.Stream'>, <class 'NoneType'>]
    Errors:
      - Expected a dot import path string: nonsense
      - Expected a <class 'NoneType'>
    Given value type: <class 'str'>
    Given value: nonsense"""
CALLABLE = """Parser key "model.optimizer":
  Type typing.Callable[[collections.abc.Iterable], torch.optim.optimizer.Optimizer] expects a
  function or a callable class: Option 'learning_rate' is not accepted. Got value: \
Namespace(class_path='torch.optim.AdamW', init_args=Namespace(learning_rate=3))"""
NESTED = """Parser key "model.allocator":
  Problem with given class_path 'dmole.allocation.UniformAllocator':
    Parser key "initializer":
      Does not validate against any of the Union subtypes
      Subtypes: [<class 'dmole.allocation.initializers.base.Initializer'>, <class 'NoneType'>]
      Errors:
        - Problem with given class_path 'dmole.allocation.KeepInitializer':
            {}
        - Expected a <class 'NoneType'>
      Given value type: <class 'dict'>
      Given value: {{'class_path': 'dmole.allocation.KeepInitializer'}}"""
RULE = """Parser key "trainer.callbacks":
  Does not validate against any of the Union subtypes
  Subtypes: [list[lightning.pytorch.callbacks.callback.Callback], <class 'NoneType'>]
  Errors:
    - Problem with given class_path 'dmole.callbacks.GradientRules':
        Parser key "rules":
          Problem with given class_path 'dmole.curriculum.rules.InputPreconditioning':
            Option 'muu' is not accepted
    - Expected a <class 'NoneType'>
  Given value type: <class 'list'>
  Given value: [{'class_path': 'dmole.callbacks.GradientRules'}]"""


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (UNION, "trainer.stream: expected the class_path of a Stream or null, got 'nonsense'"),
        (
            CALLABLE,
            "model.optimizer: torch.optim.AdamW has no argument 'learning_rate' (did you mean lr?)",
        ),
        (
            "unrecognized arguments: --data.batchsize 4",
            "there is no setting --data.batchsize (did you mean data.batch_size?)",
        ),
        (
            "unrecognized arguments: --model.optimizr.x 4",
            "there is no setting --model.optimizr.x (did you mean model.optimizer?)",
        ),
        (
            "ambiguous option: --lr could match --lr_scheduler.help, --lr_scheduler",
            "there is no setting --lr (use model.optimizer.init_args.lr)",
        ),
        (
            "Group 'trainer' does not accept option 'max_epochs'",
            "there is no setting trainer.max_epochs (each task has its own epochs, under "
            "data.tasks)",
        ),
        (
            "Option 'modle.alpha' is not accepted",
            "there is no setting modle.alpha (did you mean model.alpha?)",
        ),
        (
            "unrecognized arguments: --zzz 4",
            "there is no setting --zzz (see dmole fit --help)",
        ),
        (
            "Parser key \"data.tasks\": Problem with given class_path 'dmole.Task':\n"
            "  Option 'epoch' is not accepted",
            "data.tasks: dmole.Task has no argument 'epoch' (did you mean epochs?)",
        ),
        (
            "Parser key \"model.warmup\": Expected a <class 'float'>. Got value: two",
            "model.warmup: expected a number, got 'two'",
        ),
        (
            "Parser key \"model.schedule\": Expected a typing.Literal['cosine', 'linear']. "
            "Got value: linearr",
            "model.schedule: expected one of 'cosine', 'linear', got 'linearr'",
        ),
        (
            'Parser key "model.router": - Expected a path but AutoencoderRoute either not '
            "accessible or invalid - Expected a dot import path string: AutoencoderRoute",
            "model.router: 'AutoencoderRoute' is not the path of a class (did you mean "
            "dmole.routing.AutoencoderRouter?)",
        ),
        (
            "Parser key \"data.tasks\":\n Problem with given class_path 'dmole.Task':\n"
            "  Parser key \"epochs\":\n Expected a <class 'int'>. Got value: many",
            "data.tasks: epochs: expected an integer, got 'many'",
        ),
        (
            NESTED.format("Option 'weigth_energy' is not accepted"),
            "model.allocator: initializer: dmole.allocation.KeepInitializer has no argument "
            "'weigth_energy' (did you mean weight_energy?)",
        ),
        (
            NESTED.format(
                "Parser key \"directions\": Expected a typing.Literal['features', 'gradients']. "
                "Got value: feature"
            ),
            "model.allocator: initializer: directions: expected one of 'features', 'gradients', "
            "got 'feature'",
        ),
        (
            NESTED.format(
                'Parser key "threshold":\n Does not validate against any of the Union subtypes\n '
                "Subtypes: [<class 'float'>, <class 'NoneType'>]\n Errors:\n "
                "- Expected a <class 'float'>\n - Expected a <class 'NoneType'>\n "
                "Given value type: <class 'str'>\n Given value: high"
            ),
            "model.allocator: initializer: threshold: expected a number or null, got 'high'",
        ),
        (
            RULE,
            "trainer.callbacks: rules: dmole.curriculum.rules.InputPreconditioning has no argument "
            "'muu' (did you mean mu?)",
        ),
        ("something\nelse", "something else"),
    ],
)
def test_an_error_of_the_parser_is_short_and_says_what_was_meant(
    message: str, expected: str
) -> None:
    assert explain(message, SETTINGS).text == expected


def test_a_value_of_many_types_is_one_line_of_their_names() -> None:
    kinds = "<class 'int'>, typing.Literal['a', 'b'], list[a.b.Callback], <class 'NoneType'>"
    found = explain(f'Parser key "x.y": Subtypes: [{kinds}] Errors: - no Given value: 3.5', [])
    assert found.key == "x.y"
    expected = "expected an integer or one of 'a', 'b' or a list of Callback or null, got '3.5'"
    assert found.text == f"x.y: {expected}"


def test_a_verb_is_compared_with_its_own_settings(capsys: pytest.CaptureFixture[str]) -> None:
    for verb, has_checkpoints in (("fit", True), ("allocate", False)):
        assert main([verb, "--config", "quickstart.yaml", "--ckpt_pth", "last"]) == 1
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("dmole: there is no setting --ckpt_pth")
        assert ("did you mean ckpt_path?" in line) == has_checkpoints, line
