"""The content of intact text files; see `intact_files.py`."""

CAPTIONS = [f"a red circle, number {i}, is left of it" for i in range(6)]

ROWS = [
    {"image": f"{i}.png", "caption": [text, f"{text}."], "image_id": i, "split": "test"}
    for i, text in enumerate(CAPTIONS)
]
KARPATHY = {
    "images": [
        {
            **{"filename": f"{i}.png", "split": "test", "imgid": i},
            "sentences": [{"raw": text}, {"raw": f"{text}."}],
        }
        for i, text in enumerate(CAPTIONS)
    ]
}
COCO = {
    "images": [{"id": i, "file_name": f"{i}.png"} for i in range(6)],
    "annotations": [{"image_id": i, "caption": t} for i, t in enumerate(CAPTIONS)],
}
LINES = [{"clip_name": f"{i}", "caption": text} for i, text in enumerate(CAPTIONS)]
VIDEOS = [{"video": f"{i}.png", "caption": [text]} for i, text in enumerate(CAPTIONS)]
CSV = "key,video_id,sentence\n" + "".join(
    f'ret{i},{i},"{text}"\n' for i, text in enumerate(CAPTIONS)
)
TABLE = "image,caption,split,image_id\n" + "".join(
    f'{i}.png,"{text}",test,{i}\n' for i, text in enumerate(CAPTIONS)
)
METADATA = [{"file_name": f"{i}.png", "text": t} for i, t in enumerate(CAPTIONS)]
METADATA_CSV = TABLE.replace("image,caption", "file_name,text")
SUGARCREPE = {
    str(i): {"filename": f"{i}.png", "caption": text, "negative_caption": "no"}
    for i, text in enumerate(CAPTIONS)
}
ARO = [
    {
        **{"image_path": f"{i}.png", "true_caption": text, "false_caption": "no"},
        **{"bbox_x": 1, "bbox_y": 1, "bbox_w": 9.5, "bbox_h": 9},
        "relation_name": "left of",
    }
    for i, text in enumerate(CAPTIONS)
]
VALSE = {
    str(i): {
        **{"image_file": f"{i}.png", "caption": text, "foil": "no"},
        "mturk": {"caption": 3, "foil": 0},
    }
    for i, text in enumerate(CAPTIONS)
}
WINOGROUND = [
    {
        **{"id": i, "image_0": f"{i}", "image_1": "1", "caption_0": text},
        **{"caption_1": "no", "num_main_preds": 1, "collapsed_tag": "Object"},
    }
    for i, text in enumerate(CAPTIONS)
]
BERT = {
    **{"model_type": "bert", "hidden_size": 4, "num_hidden_layers": 2},
    **{"num_attention_heads": 2, "intermediate_size": 8, "hidden_act": "gelu"},
    **{"layer_norm_eps": 1e-12, "vocab_size": 30, "max_position_embeddings": 16},
    **{"type_vocab_size": 2, "position_embedding_type": "absolute"},
}
OWN_PAIRS = "image,caption,wrong_caption\n" + "".join(
    f'{i}.png,"{text}",no\n' for i, text in enumerate(CAPTIONS)
)
