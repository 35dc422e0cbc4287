-- Forget a consumer that works on nothing: DELCONSUMER with entries pending would lose them.
-- KEYS: streams. ARGV: group, consumer. Reply: from how many groups it was removed.
local left = 0
for _, key in ipairs(KEYS) do
  local pending = redis.pcall('XPENDING', key, ARGV[1], '-', '+', 1, ARGV[2])
  if not pending.err and #pending == 0 then
    redis.call('XGROUP', 'DELCONSUMER', key, ARGV[1], ARGV[2])
    left = left + 1
  end
end
return left
