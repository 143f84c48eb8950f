# The first hour with a folder of photographs: class folders, and drawings of the same classes.
cfmask --help
cfmask --version
cfmask train --help
cfmask eval --help
cfmask train photos --model timm:test_efficientnet/random --epochs 2 --batch-size 32 --lr 1e-3
cfmask eval runs/photos
cfmask eval runs/photos --wise 0,0.25,...,1 --show accuracy,ece
cfmask show photos/cat/0.jpg photos/rocket/0.jpg --label cat rocket --checkpoint runs/photos
cfmask show photos/cat/1.jpg photos/rocket/1.jpg --label cat rocket --checkpoint runs/photos --relevance LayerCAM --out layercam.png
cfmask predict runs/photos photos/cat/0.jpg photos/rocket/0.jpg
cfmask predict runs/photos photos/sketches --out answers.csv
cfmask predict runs/photos photos/cat/0.jpg --json
for seed in 0 1; do cfmask train photos --model timm:test_efficientnet/random --method FineTuning --epochs 1 --seed $seed --run runs/plain-$seed; done
cfmask eval runs/plain-0 runs/plain-1
cfmask train photos --model timm:test_vit/random --epochs 1 --augment randaugment --mixup 0.8 --label-smoothing 0.1 --layer-decay 0.7 --head-lr 1e-3 --run "runs/my vit"
cfmask eval runs/photos "runs/my vit" --out compared
cfmask train photos --model runs/photos --epochs 1 --lr 1e-4 --run runs/second
cfmask train photos --model my_net:Net --epochs 1 --run runs/own
cfmask train photos --model open_clip:tiny-clip --epochs 1 --mask ContextMask --fill MultiFill --holdout 0.3 --logger csv --run runs/clip
cfmask export runs/photos --to timm --out exported/timm
cfmask export runs/photos --to onnx --out exported/onnx
cfmask predict exported/onnx photos/cat/0.jpg
cfmask pack photos/sketches --out shards
cfmask pack shards --verify
cfmask check --data-root photos
cfmask train photos --model timm:test_efficientnet/random --epochs 2 --batch-size 32 --lr 1e-3 --resume
