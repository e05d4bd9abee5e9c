"""A small help centre in English and Chinese, and questions with the article that answers each."""

from __future__ import annotations

ARTICLES: dict[str, str] = {
    "en/refunds.md": """# Refund policy

We refund the full price within 30 days of delivery when an item comes back unused and in its box.

## How long it takes

The money reaches your card five to seven business days after we receive the parcel.
""",
    "en/shipping.md": """# Shipping times and costs

Standard delivery takes three to five working days. Express delivery arrives the next day for $12.

## International orders

Parcels to other countries may be held by customs; import duties are paid by the recipient.
""",
    "en/password.md": """# Reset your password

Open the sign-in page and choose "Forgot password". We email a link that is valid for one hour.

If no email arrives, look in the spam folder and check that the address is the one you registered.
""",
    "en/two_factor.md": """# Two-factor authentication

Turn on two-factor authentication under Security. Scan the QR code with an authenticator app.

## Lost phone

Use one of the ten recovery codes. Without a code, support checks your identity before it disables the second factor.
""",
    "en/cancel_subscription.md": """# Cancel a subscription

You can cancel at any time under Billing > Plan. The plan stays active until the end of the paid period.
""",
    "en/invoices.md": """# Invoices and receipts

Every payment has a PDF invoice under Billing > History. Add a VAT number in the company profile before you pay.
""",
    "en/payment_failed.md": """# A payment was declined

Banks decline cards that expired, lack funds or need a confirmation. Update the card, then choose "Retry payment".
""",
    "en/change_address.md": """# Change the delivery address

The address of an order can be changed until it is packed. Open the order and choose "Edit address".
""",
    "en/damaged.md": """# Damaged or missing items

Take photos of the parcel and of what is broken, and send them within 48 hours. We ship a replacement for free.
""",
    "en/warranty.md": """# Warranty

Devices carry a two-year warranty against defects of material and workmanship. Water and drops are not covered.
""",
    "en/export_data.md": """# Export your data

Under Privacy > Export we prepare a ZIP archive with all your files as CSV and JSON. It can take up to a day.
""",
    "en/delete_account.md": """# Delete an account

Deleting an account erases your profile and files after 14 days. Until then you can restore it by signing in.
""",
    "en/api_limits.md": """---
title: API rate limits
category: developers
---
Each key may send 600 requests per minute. Beyond that the API answers HTTP 429 with a Retry-After header.

```python
for attempt in range(3):
    reply = call()
```
""",
    "en/team_seats.md": """# Add members to a team

An owner invites people by email under Team > Members. Each active member takes one seat of the licence.
""",
    "en/gift_cards.md": """# Gift cards

Gift cards never expire and can be split over several orders. They cannot be exchanged for cash.
""",
    "zh/退款.md": """---
language: zh
category: 售后
---
# 退款政策

商品签收后七天内，未使用且包装完好的，可以申请全额退款。

## 到账时间

我们收到退回的商品后，款项会在三到五个工作日内原路退回您的银行卡或支付宝。
""",
    "zh/物流.md": """# 配送时间与运费

普通快递一般两到四天送达，满九十九元包邮。偏远地区（新疆、西藏）需要加收运费。
""",
    "zh/密码.md": """# 忘记密码

在登录页面点击“忘记密码”，输入手机号并填写短信验证码，就可以设置新的密码。
""",
    "zh/发票.md": """# 开具发票

订单完成后，在“我的订单”里点击“申请发票”。我们提供电子普通发票，企业用户可以填写税号开具增值税专用发票。
""",
    "zh/会员.md": """# 会员等级与积分

每消费一元积一分，积分可以在结算时抵扣现金，一百分抵一元。积分在次年年底清零。
""",
    "zh/取消订单.md": """# 取消订单

商品发货之前，您可以在订单详情页直接取消订单。已经发货的，请拒收或者申请退货。
""",
    "zh/换货.md": """# 换货流程

尺码或颜色不合适，可以在十五天内申请换货。请保留吊牌，换货产生的运费由买家承担。
""",
    "zh/破损.md": """# 收到破损商品

如果包裹破损或者缺少商品，请在四十八小时之内拍照联系客服，我们会免费补发。
""",
    "zh/保修.md": """# 保修服务

电子产品自购买之日起享受一年保修。人为损坏、进水不在保修范围之内，可以付费维修。
""",
    "zh/注销.md": """# 注销账号

注销账号后，您的个人资料、订单记录和优惠券都会被永久删除，无法恢复。
""",
    "zh/优惠券.md": """# 优惠券使用规则

每笔订单只能使用一张优惠券，不能与其他活动叠加。优惠券过期之后不补发。
""",
    "zh/支付.md": """# 支付失败怎么办

请确认银行卡余额充足、没有超过单日限额，或者更换微信支付、支付宝重新付款。
""",
    "zh/地址.md": """# 修改收货地址

订单发货之前可以修改一次收货地址。发货之后请联系快递公司转寄。
""",
    "zh/客服.md": """# 联系人工客服

人工客服的服务时间是每天早上九点到晚上十点，可以通过在线聊天或者拨打热线电话联系我们。
""",
    "zh/预售.txt": """预售商品说明

预售商品需要先付定金，再在规定的时间内支付尾款。逾期没有支付尾款的，定金不予退还。
""",
}

QUESTIONS: list[tuple[str, str]] = [
    ("How long until I get my money back after returning an item?", "en/refunds.md"),
    ("Are refunds possible if the box was opened?", "en/refunds.md"),
    ("how much is express shipping", "en/shipping.md"),
    ("Do I have to pay import duty when you ship to Norway?", "en/shipping.md"),
    ("I forgot my password and the email never came", "en/password.md"),
    ("Lost my phone, can't log in with the authenticator code", "en/two_factor.md"),
    ("I'd like to stop my subscription. Will it be cancelled immediately?", "en/cancel_subscription.md"),
    ("Where can I download an invoice with our VAT number on it?", "en/invoices.md"),
    ("My card was declined", "en/payment_failed.md"),
    ("wrong delivery address, can it still be changed?", "en/change_address.md"),
    ("The mug arrived broken!!", "en/damaged.md"),
    ("Is water damage covered by the warranty?", "en/warranty.md"),
    ("How do I export all my files as JSON?", "en/export_data.md"),
    ("please erase my profile", "en/delete_account.md"),
    ("we keep getting HTTP 429 from the API", "en/api_limits.md"),
    ("inviting new team members", "en/team_seats.md"),
    ("does a gift card expire?", "en/gift_cards.md"),
    ("退款什么时候到账？", "zh/退款.md"),
    ("我想申请全额退款", "zh/退款.md"),
    ("快递几天能送到新疆，运费多少", "zh/物流.md"),
    ("登录密码忘记了怎么办", "zh/密码.md"),
    ("公司需要增值税专用发票", "zh/发票.md"),
    ("积分怎么抵扣现金", "zh/会员.md"),
    ("还没有发货，我要取消订单", "zh/取消订单.md"),
    ("衣服尺码不合适想换货", "zh/换货.md"),
    ("包裹破损了，少了一件商品", "zh/破损.md"),
    ("手机进水可以保修吗", "zh/保修.md"),
    ("怎么注销账号", "zh/注销.md"),
    ("优惠券可以叠加使用吗", "zh/优惠券.md"),
    ("付款失败，支付宝也不行", "zh/支付.md"),
    ("收货地址填错了想修改", "zh/地址.md"),
    ("人工客服几点上班", "zh/客服.md"),
    ("没付尾款，定金能退吗", "zh/预售.txt"),
]
