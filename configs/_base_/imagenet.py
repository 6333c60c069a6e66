data_source = dict(
    ImageNet='ImageNet-1k from https://image-net.org/download.php: the folders train and val in data/imagenet')
