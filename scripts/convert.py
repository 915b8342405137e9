"""Convert a checkpoint to .ckpt, .safetensors or a diffusers folder (any other name).

python scripts/convert.py weights/v1-5-pruned-emaonly.ckpt v1-5.safetensors --dtype fp16
python scripts/convert.py dreamy with-its-vae.safetensors --vae vae-ft-mse-840000-ema-pruned
"""

import sys
import time
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sd.utils.errors import UserError, plain_errors, plain_imports

with plain_imports():
    from sd.checkpoints.checkpoint import check_saving, kind_to_save, load_models, save_checkpoint
    from sd.checkpoints.discovery import locate
    from sd.checkpoints.predictions import PREDICTION_HELP, PREDICTIONS, prediction_of
    from sd.cli.parser import ArgumentParser
    from sd.pipeline.onnx_export import check_folder, export_onnx
    from sd.utils.device import DTYPES


@plain_errors
def main():
    parser = ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", help="file or diffusers folder to convert, or its name in weights/")
    parser.add_argument("target", type=Path, help="X.ckpt, X.safetensors, or the name of a folder to write")
    parser.add_argument("--dtype", choices=DTYPES, help="data type of the weights (default: the source's)")
    parser.add_argument("--vae", metavar="FILE", help="a VAE, or its name in weights/, to replace the checkpoint's own")
    parser.add_argument(
        "--prediction", choices=list(PREDICTIONS), metavar="KIND", help=f"mark the result: {PREDICTION_HELP}"
    )
    parser.add_argument(
        "--onnx", action="store_true", help="write ONNX files into the folder TARGET, as the page /live runs them"
    )
    options = parser.parse_args()

    start = time.perf_counter()
    target = options.target.expanduser()
    kind_to_save(target)
    check_folder(target) if options.onnx else check_saving(target)
    separate = locate("VAE", options.vae) if options.vae else None
    dtype = DTYPES.get(options.dtype)
    source = locate("checkpoint", options.source)
    is_replaced = target.exists()
    if is_replaced and target.samefile(source):
        raise UserError(f"{options.target} is the checkpoint to convert, and would be replaced: choose another name.")
    clip, vae, unet, found = load_models(source, dtype, vae=separate, prediction=options.prediction)
    if options.onnx:
        about = export_onnx(target, clip, vae, unet, found.config, found.path)
        kind = f"ONNX for images of {about['image_size']} x {about['image_size']}"
    else:
        kind = save_checkpoint(target, clip, vae, unet, found.config, found.metadata)

    print(f"read     {found.path}: {found.kind}{''.join(f', {note}' for note in found.notes)}")
    for warning in found.warnings:
        print(f"note     {warning}")
    if separate is not None:
        print(f"VAE      {separate}")
    for name, network in (("unet", unet), ("vae", vae), ("clip", clip)):
        tensors = network.state_dict().values()
        dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors})
        count = sum(tensor.numel() for tensor in tensors)
        print(f"{name:<8} {len(tensors)} tensors, {count:,} parameters, {', '.join(dtypes)}")
        print("         " + ", ".join(f"{key} {value}" for key, value in found.config[name].items()))
    print(f"predicts {prediction_of(found.config).name}")
    print(f"ignored  {', '.join(found.ignored) or 'nothing'}")
    instead = ", in place of what was there" if is_replaced else ""
    print(f"written  {options.target}{instead}: {kind}, {time.perf_counter() - start:.1f} seconds")


if __name__ == "__main__":
    main()
