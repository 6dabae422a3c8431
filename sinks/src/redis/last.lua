-- KEYS: stream. Gives its last seq; 0 without one, -1 if something else is there.
local kind = redis.call('TYPE', KEYS[1]).ok
if kind == 'none' then return 0 end
if kind ~= 'stream' then return -1 end
local info = redis.call('XINFO', 'STREAM', KEYS[1])
for i = 1, #info, 2 do
  if info[i] == 'last-generated-id' then return tonumber(string.match(info[i + 1], '^%d+')) end
end
return 0
