"""Fine-tune a model on labels of your own, in a PyTorch loop of your own.

    python docs/examples/finetune_own_labels.py my/labels.csv -o my/fine-tuned

The table has a line path,label for each track, with paths relative to the table, and one label a
track. Every fourth folder of music is held out and tested.

`maest learn` trains a linear layer, in seconds. `ex_maest.py with maest_finetune` has the whole
recipe. Start here if you need to change the loop itself.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from maest import Extractor, Maest, get_maest, read_audio, save_model


def read_table(path: Path) -> dict[Path, str]:
    with path.open(newline="", encoding="utf-8") as file:
        return {path.parent / row["path"]: row["label"] for row in csv.DictReader(file)}


def split(tracks: list[Path]) -> tuple[list[Path], list[Path]]:
    """Hold out every fourth folder: songs of one album never stand on both sides."""
    folders = sorted({track.parent for track in tracks})
    held_out = set(folders[::4])
    train = [track for track in tracks if track.parent not in held_out]
    return train, [track for track in tracks if track.parent in held_out]


def clip(mel: np.ndarray, frames: int, rng: np.random.Generator) -> np.ndarray:
    """Cut a random clip [frames, 96] from a log-mel [T, 96]; repeat a shorter one."""
    mel = np.tile(mel, (-(-frames // len(mel)), 1))
    start = rng.integers(len(mel) - frames + 1)
    return mel[start : start + frames]


def train(net: Maest, mels: list[np.ndarray], targets: np.ndarray, epochs: int, lr: float) -> None:
    rng, batch_size = np.random.default_rng(0), 8
    for name, weights in net.named_parameters():  # the first half learns nothing
        block = int(name.split(".")[1]) if name.startswith("blocks.") else -1
        weights.requires_grad = block >= net.depth // 2 or name.startswith(("norm", "head"))
    learning = [weights for weights in net.parameters() if weights.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=lr, weight_decay=0.05)
    for epoch in range(epochs):
        net.train()
        losses = []
        for rows in np.array_split(rng.permutation(len(mels)), -(-len(mels) // batch_size)):
            clips = np.stack([clip(mels[row], net.input_t, rng).T for row in rows])
            x = net.normalise(torch.tensor(clips, dtype=torch.float32))  # [B, 96, frames]
            logits, _ = net(x, melspectrogram_input=True)  # [B, labels]
            loss = cross_entropy(logits, torch.tensor(targets[rows]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        print(f"epoch {epoch + 1}: loss {np.mean(losses):.3f}")
    net.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", type=Path)
    parser.add_argument("-o", "--out", required=True, help="the model folder to write")
    parser.add_argument("--model", default="maest-tiny-music", help="a name or a model folder")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--lr", type=float, default=1e-3)
    patchout = "time columns that training leaves out; of clips of 10 s, 30 are half"
    parser.add_argument("--patchout", type=int, default=30, help=patchout)
    args = parser.parse_args()
    torch.manual_seed(0)

    table = read_table(args.table)
    labels = sorted(set(table.values()))
    net = get_maest(
        args.model,
        labels=labels,
        task="single-label",  # a softmax over the labels
        discard_head=True,
        s_patchout_t=args.patchout,
    )
    tracks, held_out = split(list(table))
    front_end = Extractor(net, activations=True)
    mels = [front_end.log_mel(read_audio(track)).mel for track in tracks]
    train(net, mels, np.array([labels.index(table[t]) for t in tracks]), args.epochs, args.lr)
    save_model(args.out, net)

    tagger = Extractor(args.out, activations=True)  # reads the folder that was just written
    found = [labels[tagger(track).activations.argmax()] for track in held_out]
    right = sum(label == table[track] for track, label in zip(held_out, found, strict=True))
    print(f"{right} of {len(held_out)} tracks that were held out are right")
    print(f"maest tag my/music --model {args.out}")


if __name__ == "__main__":
    main()
