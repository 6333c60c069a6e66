# The 24 + 8 bundled COCO photographs with a class for every pixel (133 things and stuff), for mmseg.
data_source = dict(
    BaseSegDataset='the bundled photographs come with the repository, under data/: git checkout -- data')
data_root = '{{ fileDirname }}/../../data/coco_mini/'
metainfo = dict(classes=data_root + 'semantic/classes.txt')
crop_size = (224, 224)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(384, 384), ratio_range=(0.5, 1.5), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]

# No workers: the pictures are small, and what a worker draws at random is lost to a resumed run.
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='BaseSegDataset',
        data_root=data_root,
        data_prefix=dict(img_path='train2017', seg_map_path='semantic/train2017'),
        metainfo=metainfo,
        # 0 in the label images is "unlabelled", and 1..133 are the classes.
        reduce_zero_label=True,
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='BaseSegDataset',
        data_root=data_root,
        data_prefix=dict(img_path='val2017', seg_map_path='semantic/val2017'),
        metainfo=metainfo,
        reduce_zero_label=True,
        pipeline=test_pipeline))
test_dataloader = val_dataloader

val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
