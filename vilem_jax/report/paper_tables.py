"""Tables 1 to 4 of the paper, as numbers to print beside measured ones.

Source: Chen et al., ViLEM, CVPR 2023, the Open Access version. `None` is a dash there.
In Table 1, "99. 7" (Ours, 14.1M, Flickr30K, image to text, R@10) is read as 99.7.
"""

Row = tuple[float | None, ...]

_NONE: Row = (None,) * 7

# (model, pre-training pairs, Flickr30K 1K, COCO 5K); fine-tuned. Recall at 1, 5 and 10
# image to text, the same text to image, and their sum.
# fmt: off
TABLE_1: tuple[tuple[str, str, Row, Row], ...] = (
    ("Pixel-BERT-X152", "5.6M", (87.0, 98.9, 99.5, 71.5, 92.1, 95.8, 544.8),
     (63.6, 87.5, 93.6, 50.1, 77.6, 86.2, 458.6)),
    ("Unicoder-VL", "3.8M", (86.2, 96.3, 99.0, 71.5, 91.2, 95.2, 539.4),
     (62.3, 87.1, 92.8, 48.4, 76.7, 85.9, 453.2)),
    ("UNITER-base", "9.6M", (85.9, 97.1, 98.8, 72.5, 92.4, 96.1, 542.8),
     (64.4, 87.4, 93.1, 50.3, 78.5, 87.2, 460.9)),
    ("ERNIE-ViL-base", "3.8M", (86.7, 97.8, 99.0, 74.4, 92.7, 95.9, 546.5), _NONE),
    ("VILLA-base", "9.6M", (86.6, 97.9, 99.2, 74.7, 92.9, 95.8, 547.1), _NONE),
    ("Oscar-base", "6.5M", _NONE, (70.0, 91.1, 95.5, 54.0, 80.8, 88.5, 479.9)),
    ("ViLT", "9.9M", (83.5, 96.7, 98.6, 64.4, 88.7, 93.8, 525.7),
     (61.5, 86.3, 92.7, 42.7, 72.9, 83.1, 439.2)),
    ("VinVL-base", "8.9M", _NONE, (74.6, 92.6, 96.3, 58.1, 83.2, 90.1, 494.9)),
    ("ALBEF", "5.1M", (94.3, 99.4, 99.8, 82.8, 96.7, 98.4, 571.4),
     (73.1, 91.4, 96.0, 56.8, 81.5, 89.2, 488.0)),
    # Dual encoders.
    ("VSE∞*†", "-", (88.7, 98.9, 99.8, 76.1, 94.5, 97.1, 555.1),
     (68.1, 90.2, 95.2, 52.7, 80.2, 88.3, 474.7)),
    ("COOKIE*†", "5.9M", (89.0, 98.9, 99.7, 75.6, 94.6, 97.2, 555.0),
     (71.6, 90.9, 95.4, 54.5, 81.0, 88.2, 481.6)),
    ("LightningDOT", "9.5M", (83.9, 97.2, 98.6, 69.9, 91.1, 95.2, 535.9),
     (60.1, 85.1, 91.8, 45.8, 74.6, 83.8, 441.2)),
    ("COOKIE", "5.9M", (84.7, 96.9, 98.3, 68.3, 91.1, 95.2, 534.5),
     (61.7, 86.7, 92.3, 46.6, 75.2, 84.1, 446.6)),
    ("COTS", "5.3M", (88.2, 98.5, 99.7, 75.2, 93.6, 96.5, 551.7),
     (66.9, 88.8, 94.0, 50.5, 77.6, 86.1, 463.9)),
    ("COTS", "15.3M", (90.6, 98.7, 99.7, 76.5, 93.9, 96.6, 556.0),
     (69.0, 90.4, 94.9, 52.4, 79.0, 86.9, 472.6)),
    ("ViLEM (paper)", "5.1M", (92.4, 99.2, 99.7, 78.1, 94.6, 97.0, 561.0),
     (69.0, 90.7, 95.1, 52.6, 79.4, 87.2, 474.0)),
    ("ViLEM (paper)", "14.1M", (93.6, 99.0, 99.7, 80.5, 96.0, 98.0, 566.8),
     (73.2, 91.8, 95.9, 54.5, 80.6, 88.2, 484.2)),
)
# fmt: on
NOTE_1 = (
    "The first nine rows are joint encoders, the others dual encoders. † ensemble of "
    "two models. * 940M tagged images for pre-training the visual encoder."
)

# COCO 5K, without fine-tuning.
TABLE_2: tuple[tuple[str, Row], ...] = (
    ("CLIP", (58.4, 81.5, 88.1, 37.8, 62.4, 72.2, 400.4)),
    ("ALIGN", (58.6, 83.0, 87.9, 45.6, 69.8, 78.6, 423.5)),
    ("COTS", (60.4, 84.7, 91.7, 43.8, 71.6, 81.3, 433.5)),
    ("ViLEM (paper)", (65.6, 88.0, 93.8, 47.7, 75.2, 84.5, 454.8)),
)

# MSR-VTT 1k-A, text to video, zero-shot: R@1, R@5, R@10, median rank.
TABLE_3: tuple[tuple[str, str, Row], ...] = (
    ("MIL-NCE", "Video 120M", (9.9, 24.0, 32.4, 29.6)),
    ("TACo", "Video 120M", (9.8, 25.0, 33.4, 29.0)),
    ("SupportSet", "Video 120M", (12.7, 27.5, 36.2, 24.0)),
    ("Frozen", "Image 3M + Video 2.5M", (18.7, 39.5, 51.6, 10.0)),
    ("BridgeFormer", "Image 3M + Video 2.5M", (26.0, 46.4, 56.4, 7.0)),
    ("ViLEM (paper)", "Image 14.1M", (27.6, 49.8, 60.7, 6.0)),
)

# Winoground's text score: Object, Relation, Both, 1 predicate, 2 predicates, all.
# In the paper's own two rows Object and Relation are printed the other way round:
# 33.9 % is no number of 141 Object examples, but 79 of 233 Relation ones, and 50 of
# 141 + 79 of 233 + 17 of 26 are the 146 of 400 that it prints as 36.5. Put right here.
TAGS = ("Object", "Relation", "Both")
WINOGROUND_COUNTS = (141, 233, 26, 292, 108, 400)
TABLE_4: tuple[tuple[str, Row], ...] = (
    ("UNITER", (34.0, 30.0, 42.3, 35.3, 24.1, 32.3)),
    ("ViLBERT", (29.1, 19.3, 34.6, 24.0, 23.2, 23.8)),
    ("ViLLA", (33.3, 27.0, 38.5, 33.2, 21.3, 30.0)),
    ("ViLT", (31.9, 36.9, 30.8, 35.3, 33.3, 34.8)),
    ("FLAVA, matching", (31.9, 30.0, 53.8, 36.3, 21.3, 32.3)),
    ("VinVL", (36.9, 37.8, 42.3, 39.4, 33.3, 37.8)),
    ("FLAVA, contrastive", (23.4, 23.6, 50.0, 26.4, 22.2, 25.3)),
    ("CLIP", (34.8, 22.8, 80.8, 35.3, 18.5, 30.8)),
    ("without ViLEM (paper)", (29.1, 30.5, 50.0, 33.9, 24.1, 31.2)),
    ("ViLEM (paper)", (35.5, 33.9, 65.4, 38.7, 30.6, 36.5)),
)
NOTE_4 = (
    "Text score. Object and Relation of the paper's own two rows are printed the other "
    "way round there: 33.9 is 79 of the 233 Relation examples and no k of 141, 35.5 is "
    "50 of the 141 Object ones. The first six rows are joint encoders."
)
