"""What lies in a folder that is neither a checkpoint nor a model that is read here, and what to do with it.

Most are one step away: a program that its owner has writes them anew as a Hugging Face folder with safetensors.
"""

import re

from .folder import Folder

SAVE = "writes a folder that is read here"
PICKLE = "a pickle, which can run code when it is read, and never is here"
# By the first name that matches: what that file or folder is, and what to do. {folder} and {name} are filled in.
KINDS = [
    (
        r"adapter_config\.json",
        "{name} is of an adapter of peft, which is no model without its base: "
        "AutoPeftModelForCausalLM.from_pretrained({folder!r}).merge_and_unload().save_pretrained(OUT) " + SAVE,
    ),
    (
        r"model_index\.json",
        "{name} is of a diffusers pipeline, which makes images or sound; name the folder of a language model",
    ),
    (
        r".+\.gguf",
        "{name} is of GGUF: AutoModelForCausalLM.from_pretrained({folder!r}, gguf_file={name!r}).save_pretrained(OUT), "
        "and the same of AutoTokenizer, " + SAVE,
    ),
    (
        r"\.metadata|.+\.distcp",
        "{name} is of torch.distributed.checkpoint, whose files hold pickles: save the model as a Hugging Face folder "
        "by the program that trained it (torchtitan: scripts/checkpoint_conversion/convert_to_hf.py)",
    ),
    (
        r"model-\d+-of-\d+\.safetensors",
        "{name} is a part of the weights, and model.safetensors.index.json, which lists the parts, is not there: copy it "
        "from where they come from",
    ),
    (
        r"model\.(safetensors\.index\.)?\w+\.(safetensors|json)",
        "{name} is of a variant, which transformers reads by its name alone: from_pretrained({folder!r}, variant=...)"
        ".save_pretrained(OUT) " + SAVE,
    ),
    (
        r"pytorch_model.*\.bin(\.index\.json)?",
        "{name} is " + PICKLE + ": load it with transformers where you trust it, and save_pretrained writes safetensors",
    ),
    (r"model\.safetensors(\.index\.json)?", "{name} is there, and no config.json: copy it from where the weights come from"),
    (
        r"consolidated.*\.(pth|safetensors)|.+\.pth",
        "{name} has the weights by the names of the program that made them: take the Hugging Face folder of this model, "
        "which its publisher or a script of transformers (convert_*_weights_to_hf.py) makes",
    ),
    (
        r"tf_model\.h5|flax_model.*\.msgpack",
        "{name} is of TensorFlow or Flax: take the safetensors of this model, or write them by transformers 4 "
        "(from_tf=True or from_flax=True, then save_pretrained)",
    ),
    (
        r"latest_checkpointed_iteration\.txt|iter_\d+|mp_rank_\d+.*|zero_to_fp32\.py|global_step\d+",
        "{name} is of Megatron or DeepSpeed: save the model as a Hugging Face folder by the program that trained it",
    ),
    (r"checkpoint-\d+", "it holds {name}, of transformers' Trainer: name that folder"),
    (r"snapshots", "it is a folder of the hub's cache: name the folder inside of {name}"),
    (r"step-\d+", "it holds {name}, a checkpoint of Cistron, which needs no import: name it in checkpoint.initial_load_path"),
    (r"manifest\.json", "it is a checkpoint of Cistron, which needs no import: name it in checkpoint.initial_load_path"),
    (
        r"tokenizer\.(json|model)|tokenizer_config\.json",
        "{name} is of a tokenizer, and there is no model: name the folder in tokenizer.path, and another here",
    ),
]


def foreign(folder: Folder) -> str | None:
    """Return what a folder of another program holds, and what to do with it; None where nothing in it is known.

    Raises:
        OSError: it cannot be listed.
    """
    names = folder.names()
    for pattern, text in KINDS:
        if name := next((name for name in names if re.fullmatch(pattern, name)), None):
            return text.format(folder=str(folder), name=name)
    return None
