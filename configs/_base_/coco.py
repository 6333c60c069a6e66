data_source = dict(
    CocoDataset='COCO 2017 from https://cocodataset.org/#download: unpack train2017.zip, val2017.zip and '
    'annotations_trainval2017.zip in data/coco')
