"""The text of `clip-la convert --help`, read from the sources as that of `clip-la train` is."""

from clip_la.train.help import Option, paragraphs, parameters_of

_USAGE = """\
usage: clip-la convert RUN_OR_OPENCLIP --attention PLAN --data SHARDS --out OUT [--OPTION VALUE ...]
       clip-la convert NAME:FILE --image_attention PLAN --data SHARDS --out OUT --layers.samples N ...

A trained model into one of another attention. Weights are copied; what has no counterpart starts at its initial value,
and is told. Then up to three stages, each a run in a folder of OUT (metrics.csv, checkpoints):
  layers    every changed attention layer learns the teacher's output from the teacher's input to it; only these train
  features  the changed towers learn the teacher's features
  tune      the trainer as ever, `clip-la train --model.init_from CHECKPOINT`
OUT/copied holds the model before them. The same command goes on where it was stopped or killed; --attention softmax is
the control. `clip-la eval OUT/tune` evaluates; result lines carry the lineage: the teacher, and samples of each stage.
"""
_STAGES = "layers, features or tune"
# Set for each stage, and known to be there by these names.
_STAGE_OPTIONS = [
    Option("STAGE.samples", "int", "None", f"samples that {_STAGES} sees; left out, 2, 6 and 2 % of the teacher's own"),
    Option("STAGE.lr", "float", "0.003, 0.001, 0.0001", "peak learning rate of a cosine with a short warm-up"),
    Option("STAGE.batch_size", "int", "None", "of this stage, if not data.batch_size; matching needs no large ones"),
    Option("STAGE.weight_decay", "float", "0.0, 0.0, 0.2", "of AdamW"),
]
_LINKED = {"data.seed", "data.image_size", "data.context_length", "data.tokenizer"}
_ELSEWHERE = {"teacher", "data", "layers", "features", "tune"}


def options() -> list[Option]:
    """All options of the command; STAGE stands for the name of one."""
    own = (option for option in parameters_of("clip_la.convert.run", "convert", "") if option.name not in _ELSEWHERE)
    data = parameters_of("clip_la.data.datamodule", "ShardDataModule", "data.")
    config = Option("config", "path", "None", "a YAML file of options; may be given several times")
    return [config, *own, *_STAGE_OPTIONS, *(option for option in data if option.name not in _LINKED)]


def help_text() -> str:
    """Usage and a paragraph an option."""
    return _USAGE + "\noptions:\n" + paragraphs(options())
