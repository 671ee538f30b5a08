"""The networks of the coverage table, by name; the list is committed so that none can disappear unnoticed.

Of torchvision: every classifier it lists. Of timm: small members of every family whose layers are convolutions, two to
five of each where the family has kinds that differ (attention on channels, anti-aliasing, other normalisations).
Left out: families whose layers are attention or multi-layer perceptrons over patches.
"""

from __future__ import annotations

TORCHVISION = """
alexnet
convnext_tiny convnext_small convnext_base convnext_large
densenet121 densenet161 densenet169 densenet201
efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_b5 efficientnet_b6
efficientnet_b7 efficientnet_v2_s efficientnet_v2_m efficientnet_v2_l
googlenet inception_v3
mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3
mobilenet_v2 mobilenet_v3_small mobilenet_v3_large
regnet_x_400mf regnet_x_800mf regnet_x_1_6gf regnet_x_3_2gf regnet_x_8gf regnet_x_16gf regnet_x_32gf
regnet_y_400mf regnet_y_800mf regnet_y_1_6gf regnet_y_3_2gf regnet_y_8gf regnet_y_16gf regnet_y_32gf regnet_y_128gf
resnet18 resnet34 resnet50 resnet101 resnet152 resnext50_32x4d resnext101_32x8d resnext101_64x4d
shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0
squeezenet1_0 squeezenet1_1
vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn
wide_resnet50_2 wide_resnet101_2
""".split()

TIMM = """
convmixer_768_32
convnext_atto convnext_atto_ols convnext_atto_rms convnext_femto convnext_pico convnext_nano convnext_tiny
convnext_tiny_hnf convnext_zepto_rms convnextv2_atto convnextv2_femto
cspdarknet53 cspresnet50 cspresnet50d cspresnext50 cs3darknet_s cs3darknet_focus_s cs3sedarknet_l cs3edgenet_x
cs3se_edgenet_x darknet17 darknet53 darknetaa53 sedarknet21
densenet121 densenet169 densenetblur121d
dla34 dla46_c dla46x_c dla60 dla60x dla60_res2net dla60_res2next
dpn48b dpn68 dpn68b
efficientnet_b0 efficientnet_b0_gn efficientnet_b0_g8_gn efficientnet_b0_g16_evos efficientnet_b1 efficientnet_b1_pruned
efficientnet_blur_b0 efficientnet_cc_b0_4e efficientnet_el efficientnet_em efficientnet_es efficientnet_lite0
efficientnetv2_rw_t gc_efficientnetv2_rw_t tf_efficientnet_b0 tf_efficientnetv2_b0 tf_efficientnetv2_b1
fbnetc_100 mixnet_s mixnet_m tf_mixnet_s mnasnet_050 mnasnet_100 mnasnet_small semnasnet_075 semnasnet_100 spnasnet_100
mobilenet_edgetpu_100 mobilenet_edgetpu_v2_xs mobilenetv1_100 mobilenetv1_100h mobilenetv2_035 mobilenetv2_100
mobilenetv2_110d tinynet_a tinynet_c tinynet_e hardcorenas_a hardcorenas_c
fbnetv3_b lcnet_050 lcnet_100 mobilenetv3_large_100 mobilenetv3_rw mobilenetv3_small_050 mobilenetv3_small_100
tf_mobilenetv3_large_minimal_100 mobilenetv4_conv_small mobilenetv4_conv_medium mobilenetv4_conv_blur_medium
mobilenetv4_conv_aa_medium
fasternet_t0 fasternet_t1
ghostnet_050 ghostnet_100 ghostnetv2_100 ghostnetv3_050 ghostnetv3_100 repghostnet_050 repghostnet_100
hgnet_tiny hgnetv2_b0 hgnetv2_b2 hrnet_w18_small hrnet_w18_small_v2 hrnet_w18
inception_next_atto inception_next_tiny inception_resnet_v2 inception_v3 inception_v4
mambaout_femto mambaout_kobe convformer_s18 poolformer_s12 poolformerv2_s12
nfnet_l0 nf_resnet26 nf_resnet50 nf_seresnet26 nf_ecaresnet26 nf_regnet_b0 eca_nfnet_l0
pnasnet5large rdnet_tiny
regnetx_002 regnetx_008 regnetx_032 regnety_002 regnety_008 regnety_032 regnety_040_sgn regnetv_040 regnetz_005
regnetz_040 regnetz_b16 regnetz_d8
gernet_s gernet_m mobileone_s0 mobileone_s1 repvgg_a0 repvgg_b0 repvgg_b1g4 repvgg_d2se resnet32ts resnet33ts resnet51q
resnet61q resnext26ts seresnext26ts gcresnet33ts gcresnext26ts eca_resnet33ts eca_resnext26ts
repvit_m0_9 repvit_m1 res2net50_26w_4s res2net50_14w_8s res2net50d res2next50 resnest14d resnest26d resnest50d
resnet10t resnet14t resnet18 resnet18d resnet26t resnet34 resnet50 resnet50_gn resnet50c resnet50d resnet50s
resnetaa34d resnetaa50 resnetblur18 resnetblur50 resnetrs50 resnext50_32x4d seresnet18 seresnet50 seresnext26d_32x4d
seresnext50_32x4d seresnetaa50d ecaresnet26t ecaresnet50d ecaresnetlight ecaresnext26t_32x4d wide_resnet50_2
resnetv2_18 resnetv2_50 resnetv2_50d_gn resnetv2_50d_frn resnetv2_50d_evos resnetv2_50x1_bit
rexnet_100 rexnet_150 rexnetr_100 selecsls42 selecsls42b selecsls60
legacy_seresnet18 legacy_seresnext26_32x4d legacy_seresnet50 skresnet18 skresnet34 skresnext50_32x4d
starnet_s1 starnet_s050 tresnet_m
vgg11 vgg11_bn vgg13_bn vgg16_bn
vovnet39a ese_vovnet19b_dw ese_vovnet19b_slim ese_vovnet39b eca_vovnet39b
legacy_xception xception41 xception41p
""".split()

OUT_OF_SCOPE = (
    "torchvision: maxvit_t swin_b swin_s swin_t swin_v2_b swin_v2_s swin_v2_t vit_b_16 vit_b_32 vit_h_14 vit_l_16 "
    "vit_l_32",
    "timm, families: beit byoanet cait coat convit crossvit davit deit efficientformer efficientvit_msra eva gcvit "
    "hiera levit maxxvit mlp_mixer mobilevit mvitv2 naflexvit nest nextvit pit pvt_v2 sequencer swin_transformer "
    "swin_transformer_v2 tiny_vit tnt twins vision_transformer vision_transformer_hybrid visformer vitamin volo xcit",
)
